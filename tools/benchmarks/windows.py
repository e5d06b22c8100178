"""Logits of overlapping windows put together: time and peak memory of what a toolkit adds to the network.

In place of a network, every window gets a copy of the same logits: peers multiply what the network gave by weights in
place. `the network's answers alone` shows what that takes of all the times. MONAI gets the weights that segkit takes,
for it cuts its own off below a thousandth; nnU-Net adds up in half precision with weights of its own, so its result is
not compared.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import random_logits
from benchmarks.losses import Case, memory_row
from benchmarks.peers import peer
from benchmarks.rows import Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit import MaskFormat
from segkit.inference.stitching import Grid, Window, stitch
from segkit.inference.tiling import image_logits, image_planes
from segkit.ops.upsample import CoarseLogits

MONAI, NNUNET = "MONAI", "nnU-Net"
_WIDE, _TALL = "wide", "tall"
_COPIES = "the network's answers alone"
_OVERLAP = 0.25
_FACTOR = 4
_TIME, _MEMORY, _HEIGHT = Goal(0.60), Goal(0.35), Goal(1.20)


def sliding_window(settings: Settings) -> list[Row]:
    """Windows of 512 pixels put together to 2048x2048 pixels of 19 classes: time and peak memory; memory by height."""
    rows = []
    for name in ("stitching", "stitching-upsampled"):
        case = CASES[name](settings)
        rows.append(time_row("sliding-window", case.title, case.baseline, case.contenders, settings))
        case = replace(case, contenders=[replace(c, goal=c.goal and _MEMORY) for c in case.contenders])
        rows.append(memory_row("sliding-window", name, case, settings))
    case = CASES["to-planes"](settings)
    rows.append(time_row("sliding-window", case.title, case.baseline, case.contenders, settings))
    rows.append(_by_width(memory_row("sliding-window", "by-height", CASES["by-height"](settings), settings), settings))
    return rows


def stitching_case(settings: Settings, factor: int = 1) -> Case:
    """From windows to logits: the peers' in full, segkit's in bands."""
    work = _Work(settings, factor)
    title = f"stitching of {work.describe()}"
    contenders = [
        Contender(MONAI, partial(_monai, work), result=lambda logits: [logits.cpu()]),
        Contender(NNUNET, partial(_nnunet, work)),
        Contender(_COPIES, partial(_copies, work)),
        Contender("segkit", partial(_bands, work), _TIME, result=lambda _: [work.whole_logits()]),
    ]
    return Case(title, MONAI, contenders, work.logits_mib)


def planes_case(settings: Settings) -> Case:
    """From windows to planes."""
    work = _Work(settings)

    def monai() -> Run:
        run = _monai(work)
        return lambda: run().argmax(1)

    def segkit() -> Run:
        return lambda: image_planes(work.model, work.image, work.side)

    # Shares of the classes: where two logits are equal but for rounding, either class may come out.
    def shares(pred: Tensor) -> list[Tensor]:
        return [torch.bincount(pred.flatten().cpu().long(), minlength=work.classes) / pred.numel()]

    contenders = [Contender(MONAI, monai, result=shares), Contender("segkit", segkit, _TIME, result=shares)]
    return Case(f"stitching and decoding of {work.describe()}", MONAI, contenders, work.logits_mib)


def height_case(settings: Settings) -> Case:
    """segkit's bands of a wide image and of a tall one."""
    works = {name: _Work(settings, size_hw=size_hw) for name, size_hw in _sizes(settings).items()}
    contenders = [
        Contender(name, partial(_bands, work), _HEIGHT if name == _TALL else None) for name, work in works.items()
    ]
    shapes = " and ".join(f"{h}x{w} ({name})" for name, (h, w) in _sizes(settings).items())
    return Case(f"stitching of {shapes}, for each column", _WIDE, contenders, works[_WIDE].logits_mib)


CASES: dict[str, Callable[[Settings], Case]] = {
    "stitching": stitching_case,
    "stitching-upsampled": partial(stitching_case, factor=_FACTOR),
    "to-planes": planes_case,
    "by-height": height_case,
}


class _Work:
    """An image, its windows and what a network says of each.

    Attributes:
        image: (1, 3, H, W) uint8.
        logits: (1, C, h, w) of a window, smaller by the factor at which the network upsamples last.
    """

    def __init__(self, settings: Settings, factor: int = 1, size_hw: tuple[int, int] | None = None) -> None:
        self.classes, self.side, side = (3, 32, 80) if settings.small else (19, 512, 2048)
        self.size_hw, self.factor = size_hw or (side, side), factor
        small = self.side // factor
        self.logits = random_logits(1, self.classes, (small, small)).to(settings.device)
        self.image = torch.zeros((1, 3, *self.size_hw), dtype=torch.uint8, device=settings.device)
        self.model: Any = SimpleNamespace(
            format=MaskFormat.multiclass(range(self.classes)), resize=None, coarse_logits=self.coarse_logits
        )

    @property
    def logits_mib(self) -> float:
        return 4 * self.classes * self.size_hw[0] * self.size_hw[1] / 2**20

    def describe(self) -> str:
        text = f"{self.size_hw[0]}x{self.size_hw[1]}, C={self.classes}, windows of {self.side}"
        return text if self.factor == 1 else f"{text} upsampled x{self.factor}"

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        return CoarseLogits(self.logits.clone(), (self.side, self.side), align_corners=True)

    def network(self, images: Tensor) -> Tensor:
        """As a network of segmentation-models-pytorch ends."""
        if self.factor == 1:
            return self.logits.clone()
        return F.interpolate(self.logits, scale_factor=self.factor, mode="bilinear", align_corners=True)

    def whole_logits(self) -> Tensor:
        return image_logits(self.model, self.image, self.side).full().cpu()


def _sizes(settings: Settings) -> dict[str, tuple[int, int]]:
    wide, tall = ((139, 104), (1000, 40)) if settings.small else ((6940, 5200), (50_000, 2_000))
    return {_WIDE: wide, _TALL: tall}


def _by_width(row: Row, settings: Settings) -> Row:
    """Samples in KiB for each column of the image."""
    for entry in row.entries:
        entry.samples = [mib * 1024 / _sizes(settings)[entry.name][1] for mib in entry.samples]
    return replace(row, quantity="KiB").relate()


def _copies(work: _Work) -> Run:
    def run() -> None:
        for i, j in (grid := Grid(work.size_hw, work.side)):
            work.network(work.image[(..., *grid.place(i, j))])

    return run


def _bands(work: _Work) -> Run:
    def run() -> None:
        grid = Grid(work.size_hw, work.side)
        windows = (Window(0, i, j, work.image[(..., *grid.place(i, j))]) for i, j in grid)
        for _ in stitch(work.model, [grid], windows, 1):
            pass

    return run


def _monai(work: _Work) -> Run:
    inferer = peer("monai", "monai.inferers").sliding_window_inference
    offsets = torch.arange(work.side, dtype=torch.float64) - (work.side - 1) / 2
    bell = torch.exp(-0.5 * (offsets / (work.side / 8)) ** 2)
    weights = (bell[:, None] * bell).float().to(work.image.device)
    image = work.image.float()
    options = {"overlap": _OVERLAP, "mode": "gaussian", "roi_weight_map": weights}
    return lambda: inferer(image, (work.side, work.side), 1, work.network, **options)


def _nnunet(work: _Work) -> Run:
    module = peer("nnunetv2", "nnunetv2.inference.predict_from_raw_data")
    device = work.image.device
    # It tells on stdout that it runs on a CPU.
    with contextlib.redirect_stdout(sys.stderr):
        predictor = module.nnUNetPredictor(1 - _OVERLAP, use_gaussian=True, use_mirroring=False, device=device)
    predictor.allow_tqdm = False
    predictor.network = work.network
    predictor.configuration_manager = SimpleNamespace(patch_size=(work.side, work.side))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=work.classes)
    image = work.image[0, :, None].float()
    slicers = predictor._internal_get_sliding_window_slicers(image.shape[1:])

    def run() -> Tensor:
        return predictor._internal_predict_sliding_window_return_logits(image, slicers, do_on_device=True)

    return run
