"""How much of each class was found, in pixels: the sums every region loss is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PIXELS = (0, 2, 3)


class OverlapSums(NamedTuple):
    """Sums over the valid pixels of a batch, (C,) each, in the dtype of the probabilities (float32 or better)."""

    both: Tensor  # Σ p·t
    probs: Tensor  # Σ p
    truth: Tensor  # Σ t


def overlap_sums(probs: Tensor, truth: Tensor, valid: Tensor) -> OverlapSums:
    """Soft overlap of each class with the truth, and the size of both, summed over the batch.

    Args:
        probs: (N, C, H, W) float in [0, 1].
        truth: (N, C, H, W) bool, one map per class.
        valid: (N, 1, H, W) or (N, C, H, W) bool; False pixels count nowhere, whatever the others hold there.

    Returns:
        Sums in pixels. All three are 0 for a class without a valid pixel.
    """
    if probs.dtype in (torch.float16, torch.bfloat16):
        # fp16 ends at 65504, less than the pixels of a 256x256 image.
        probs = probs.float()
    truth = truth & valid
    return OverlapSums(
        # where(), not a product: NaN · 0 is NaN, forwards and backwards. No matmul either: autocast would halve it.
        both=torch.where(truth, probs, 0.0).sum(_PIXELS),
        probs=torch.where(valid, probs, 0.0).sum(_PIXELS),
        # Counted as integers: float32 stops counting at 2^24 pixels.
        truth=truth.sum(_PIXELS).to(probs.dtype),
    )
