"""Right and wrong pixels of each class of each image: the counts every score is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def count_pixels(pred_maps: Tensor, truth_maps: Tensor, valid: Tensor) -> Tensor:
    """Confusion counts of each class against the rest.

    Args:
        pred_maps: (N, C, H, W) bool, True where the class was predicted.
        truth_maps: (N, C, H, W) bool, True where the class is.
        valid: (N, 1, H, W) or (N, C, H, W) bool; False pixels count nowhere.

    Returns:
        (N, C, 4) int64 [tp, fp, fn, tn], never negative; they sum to the valid pixels of the class.
    """
    # One image at a time: temporaries are one (C, H, W) bool map, not N of them.
    images = [_count_image(*maps) for maps in zip(pred_maps, truth_maps, valid.expand_as(pred_maps), strict=True)]
    return torch.stack(images) if images else pred_maps.new_zeros((0, pred_maps.shape[1], 4), dtype=torch.int64)


def _count_image(pred: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(C, H, W) bool each to (C, 4) int64."""
    pred, truth = pred & valid, truth & valid
    tp = _count_true(pred & truth)
    fp = _count_true(pred) - tp
    fn = _count_true(truth) - tp
    return torch.stack([tp, fp, fn, _count_true(valid) - tp - fp - fn], dim=-1)


def _count_true(maps: Tensor) -> Tensor:
    """(C, H, W) bool to (C,) int64."""
    if maps.is_cuda:
        return maps.sum((1, 2))
    # sum() widens every bool to eight bytes first: 48 ms against 7 ms here for 19x512x1024 on one CPU core.
    return torch.stack([torch.count_nonzero(m) for m in maps])
