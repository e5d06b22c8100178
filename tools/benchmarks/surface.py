"""HD95 and surface Dice of two regions, with spacing: beside MONAI, on the CPU, where both compute them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.peers import peer
from benchmarks.rows import Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit.metrics.surface import surface_distances

_TOLERANCE_MM = 2.0
_AGREEMENT = 1e-4
MONAI = "MONAI"


def surface(settings: Settings) -> list[Row]:
    """Two regions that resemble each other, a fifth of the image each: in a picture and in a volume."""
    shapes = (((64, 48), (1.0, 0.7), 0.20), ((24, 32, 28), (2.0, 0.7, 0.8), 0.35))
    if not settings.small:
        shapes = (((512, 512), (1.0, 0.7), 0.20), ((128, 128, 128), (2.0, 0.7, 0.8), 0.35))
    return [_row(settings, *shape) for shape in shapes]


def _row(settings: Settings, shape: tuple[int, ...], spacing_mm: tuple[float, ...], limit: float) -> Row:
    pred, truth = _regions(shape)

    def monai() -> Run:
        metrics = peer("monai", "monai.metrics")
        pair = [torch.from_numpy(region)[None, None] for region in (pred, truth)]
        options = {"include_background": True, "spacing": spacing_mm}

        def measure() -> torch.Tensor:
            hd95 = metrics.compute_hausdorff_distance(*pair, percentile=95, **options)
            dice = metrics.compute_surface_dice(*pair, [_TOLERANCE_MM], **options)
            return torch.stack([hd95, dice]).flatten().double()

        return measure

    def segkit() -> Run:
        def measure() -> torch.Tensor:
            found = surface_distances(pred, truth, spacing_mm)
            return torch.tensor([found.hausdorff(95), found.surface_dice(_TOLERANCE_MM)], dtype=torch.float64)

        return measure

    contenders = [
        Contender(MONAI, monai, result=_only),
        Contender("segkit", segkit, Goal(limit), result=_only),
    ]
    title = f"HD95 and surface Dice, {'x'.join(map(str, shape))}"
    return time_row("surface", title, MONAI, contenders, settings, tolerance=_AGREEMENT)


def _only(found: torch.Tensor) -> list[torch.Tensor]:
    return [found]


def _regions(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sigma = shape[0] / 2 ** (2 + len(shape) / 2)
    field = gaussian_filter(rng.standard_normal(shape), sigma)
    other = field + 0.3 * gaussian_filter(rng.standard_normal(shape), sigma)
    limit = np.quantile(field, 0.8)
    return other > limit, field > limit
