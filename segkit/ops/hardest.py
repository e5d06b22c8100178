"""Which pixels of a batch are hard: an exact number of the largest values, found without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Shares are counted in millionths: exact on any device, where 0.07 · 100 in floats would round up to 8.
_WHOLE = 10**6


def select_hardest(values: Tensor, counted: Tensor, share: float) -> Tensor:
    """Mark the largest values of each set.

    Args:
        values: (S, n) float, S sets of n values; NaN is taken as the largest, so that it cannot hide.
        counted: (S, n) bool; where False nothing is marked.
        share: in (0, 1], to the millionth; that share of the counted values is marked, rounded up.

    Returns:
        (S, n) bool. Among equal values those that come first in memory are marked, so that equal runs are equal.
    """
    size = values.shape[1]
    if not values.numel():
        return counted
    millionths = max(1, round(share * _WHOLE))
    wanted = _share_of(counted.sum(1, keepdim=True), millionths)
    ranked = values.detach().masked_fill(values.isnan(), torch.inf).masked_fill(~counted, -torch.inf)
    # How many are counted only the device knows; it is no more than all of them.
    largest = ranked.topk(_share_of(size, millionths), dim=1).values
    least = largest.gather(1, (wanted - 1).clamp_min(0))
    above, level = ranked > least, counted & (ranked == least)
    return above | (level & (level.cumsum(1) <= wanted - above.sum(1, keepdim=True)))


def _share_of(count: Any, millionths: int) -> Any:
    """That share of an int or of a tensor of them, rounded up."""
    return -(-count * millionths // _WHOLE)
