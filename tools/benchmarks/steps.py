"""Whole training steps: segkit against bare segmentation-models-pytorch, and what the toolkit adds to a bare loop."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
from torch import nn

from benchmarks.inputs import class_planes
from benchmarks.losses import segkit_loss, smp_loss
from benchmarks.peers import peer
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Run, Settings, rounds_of, time_row
from segkit import MaskDataset, MaskFormat, build_model, open_codec
from segkit.data.loaders import train_loader
from segkit.models.segmenter import Segmenter
from segkit.training.optimizer import build_optimizer, build_schedule
from segkit.training.step import training_loss

_CLASSES = 19
_NETWORKS = (("unet", "Unet", "resnet34"), ("fpn", "FPN", "resnet50"))
# Steps of one sample of the overhead; the first of an epoch waits for the loader and is left out.
_STEPS = 6


def step(settings: Settings) -> list[Row]:
    """Forward, loss, backward and AdamW, with segkit and without; then segkit's `fit` around the same step."""
    if settings.small:
        settings = replace(settings, rounds=1)
    rows = [_against_smp(*network, settings) for network in _NETWORKS]
    return [*rows, _overhead(settings)]


def _against_smp(architecture: str, smp_name: str, encoder: str, settings: Settings) -> Row:
    n, size_hw, encoder = _shape(encoder, settings)
    classes = 5 if settings.small else _CLASSES
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, *size_hw), dtype=torch.uint8, generator=generator).to(settings.device)
    planes = class_planes(n, classes, size_hw).to(settings.device)

    def bare(channels_last: bool, compiled: bool = False) -> Run:
        smp = peer("segmentation-models-pytorch", "segmentation_models_pytorch")
        network = getattr(smp, smp_name)(encoder, encoder_weights=None, classes=classes).to(settings.device)
        # Normalised float32 images, as its users' data loaders hand them out.
        ready = (images.float() - 120.0) / 58.0
        if channels_last:
            network, ready = _channels_last(network), ready.contiguous(memory_format=torch.channels_last)
        forward = torch.compile(network) if compiled else network
        loss, indices = smp_loss(), planes[:, 0].long()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        return _stepper(lambda: loss(forward(ready), indices), optimizer, settings)

    def segkit() -> Run:
        model = _segkit_model(architecture, encoder, classes, settings)
        loss = segkit_loss(classes)
        return _stepper(lambda: training_loss(model, loss, images, planes), build_optimizer(model, 1e-4), settings)

    contenders = [
        Contender("SMP", lambda: bare(channels_last=False)),
        Contender("SMP, channels_last", lambda: bare(channels_last=True)),
        Contender("segkit", segkit, Goal(0.90)),
    ]
    if settings.device.type == "cuda":
        contenders.insert(2, Contender("SMP, channels_last, compiled", lambda: bare(True, compiled=True)))
    title = f"training step, {smp_name}/{encoder}, {n}x3x{size_hw[0]}x{size_hw[1]}, C={classes}"
    return time_row("step", title, "SMP", contenders, settings)


def _stepper(loss: Any, optimizer: torch.optim.Optimizer, settings: Settings) -> Run:
    """A call that takes one optimizer step; bf16 on CUDA, as both sides' users train there."""
    cuda = settings.device.type == "cuda"

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            value = loss()
        value.backward()
        optimizer.step()

    return run


# Overhead --------------------------------------------------------------------------------------------------


def _overhead(settings: Settings) -> Row:
    """Median time from one batch to the next inside `fit`, against a plain loop over the same loader."""
    from lightning.pytorch.callbacks import Callback

    from segkit import fit

    class Clock(Callback):
        """Notes when each batch is done."""

        def __init__(self) -> None:
            self.done_s: list[float] = []

        def on_train_batch_end(self, *args: Any) -> None:
            self.done_s.append(_now_s(settings))

    n, size_hw, encoder = _shape("resnet34", settings)
    classes = 5 if settings.small else _CLASSES
    loss, baseline = segkit_loss(classes), "bare loop"
    entries = [Entry(baseline), Entry("segkit fit", goal=Goal(1.02))]
    title = f"toolkit overhead per step, Unet/{encoder}, {n}x3x{size_hw[0]}x{size_hw[1]}, C={classes}"
    with tempfile.TemporaryDirectory() as folder:
        data = _written(Path(folder), n * (3 if settings.small else _STEPS), classes, size_hw)
        model = _segkit_model("unet", encoder, classes, settings)
        _loop(model, loss, data, n, settings)
        for number in rounds_of(title, settings):
            entries[0].samples.append(1000.0 * _interval_s(_loop(model, loss, data, n, settings)))
            clock = Clock()
            options = {"epochs": 1, "batch_size": n, "workers": 0, "progress": False, "tell": lambda line: None}
            out = Path(folder) / f"run{number}"
            fit(model, data, out=out, loss=loss, device=str(settings.device), callbacks=[clock], **options)
            model.to(settings.device).train()
            entries[1].samples.append(1000.0 * _interval_s(clock.done_s))
    return Row("step", title, "ms", entries, baseline).relate()


def _loop(model: Segmenter, loss: Any, data: MaskDataset, n: int, settings: Settings) -> list[float]:
    """The training that `fit` does, by hand: when each batch was done."""
    optimizer = build_optimizer(model, 1e-3)
    schedule = build_schedule(optimizer, "cosine", len(data) // n, 0)
    cuda = settings.device.type == "cuda"
    done_s = []
    for batch in train_loader(data, n, workers=0):
        batch = batch.to(settings.device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            value = training_loss(model, loss, batch.images, batch.target)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done_s.append(_now_s(settings))
    return done_s


def _interval_s(done_s: list[float]) -> float:
    return median(after - before for before, after in pairwise(done_s))


def _now_s(settings: Settings) -> float:
    if settings.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _written(root: Path, count: int, classes: int, size_hw: tuple[int, int]) -> MaskDataset:
    """A data set of PNG files."""
    generator = torch.Generator().manual_seed(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    planes = class_planes(count, classes, size_hw)
    for number in range(count):
        noise = torch.randint(0, 256, (*size_hw, 3), dtype=torch.uint8, generator=generator)
        cv2.imwrite(str(root / "images" / f"{number}.png"), noise.numpy())
        cv2.imwrite(str(root / "masks" / f"{number}.png"), planes[number, 0].numpy())
    codec = open_codec("index_png", MaskFormat.multiclass(range(classes)))
    return MaskDataset(root / "images", root / "masks", codec)


def _segkit_model(architecture: str, encoder: str, classes: int, settings: Settings) -> Segmenter:
    model = build_model(architecture, encoder, MaskFormat.multiclass(range(classes)), weights=None)
    return _channels_last(model.to(settings.device))


def _channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)


def _shape(encoder: str, settings: Settings) -> tuple[int, tuple[int, int], str]:
    """(images, size, encoder): what fits the device."""
    if settings.small:
        return 2, (32, 64), "resnet18"
    return (16, (512, 512), encoder) if settings.device.type == "cuda" else (4, (256, 256), encoder)
