"""Logits of images of any size: whole, or window by window where they are large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segkit.inference.models import SegmentationModel
from segkit.ops.sizes import fit_size
from segkit.ops.upsample import CoarseLogits

# Above this, an image is cut into windows without being asked: 4 megapixels at the model's working size.
WHOLE_PIXELS = 4 * 1024 * 1024
DEFAULT_TILE = 1024
_OVERLAP = 0.25


def image_logits(
    model: SegmentationModel, images: Tensor, tile: int | None = None, spacing_mm: Sequence[float] | None = None
) -> CoarseLogits:
    """Logits for the stored size.

    Args:
        images: (N, B, H, W) as stored, on the model's device.
        tile: side of the windows in pixels of the model's working size; None cuts only images above 4 megapixels.
        spacing_mm: (row, column) distances of all images, where the model works at a `Spacing`.

    Returns:
        Standing for (N, C, H, W).
    """
    stored_hw = (images.shape[-2], images.shape[-1])
    height, width = fit_size(stored_hw, model.resize, spacing_mm)
    side = tile if tile is not None else (DEFAULT_TILE if height * width > WHOLE_PIXELS else None)
    if side is None or (height <= side and width <= side):
        return model.predict_coarse_logits(images, spacing_mm)
    if (height, width) == stored_hw:
        return CoarseLogits.of(blend_windows(model, images, side))
    logits = blend_windows(model, model.resized(images, (height, width)), side)
    return CoarseLogits(logits, stored_hw, align_corners=False)


def check_tile(tile: int | None) -> None:
    """Refuse windows too small to see anything in."""
    if tile is not None and tile < 32:
        raise ValueError(f"tile is {tile}: windows need a side of at least 32 pixels.")


def blend_windows(model: SegmentationModel, images: Tensor, side: int) -> Tensor:
    """Average of the logits of overlapping windows, weighted by a Gaussian around each window's centre.

    The weight (deviation of an eighth of the window, as in nnU-Net, Isensee et al. 2021) trusts the middle, where
    the network saw context on all sides.
    """
    height, width = images.shape[-2:]
    side_h, side_w = min(side, height), min(side, width)
    weight = _gaussian(side_h, images.device)[:, None] * _gaussian(side_w, images.device)
    total: Tensor | None = None
    weights = torch.zeros((height, width), device=images.device)
    for top in window_starts(height, side_h):
        for left in window_starts(width, side_w):
            rows, columns = slice(top, top + side_h), slice(left, left + side_w)
            logits = model.coarse_logits(images[..., rows, columns]).full().float()
            if total is None:
                total = logits.new_zeros((len(images), logits.shape[1], height, width))
            total[..., rows, columns] += logits * weight
            weights[rows, columns] += weight
    assert total is not None
    return total / weights


def window_starts(length: int, side: int, overlap: float = _OVERLAP) -> list[int]:
    """Where windows of `side` start so that they cover `length`, evenly, neighbours sharing at least `overlap`."""
    if length <= side:
        return [0]
    step = max(1, int(side * (1.0 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _gaussian(side: int, device: torch.device) -> Tensor:
    offsets = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-0.5 * (offsets / (side / 8)) ** 2)
