"""Where the pixels of a line lie among coarse values, as tables on a device: what kernels upsample by."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from segkit.ops.upsample import CoarseLogits, source_positions


class LineTables(NamedTuple):
    """Pixels of a line, and the cells that they are in; cell i is between the coarse values i and i + 1."""

    # (cells + 1,) int32: first pixel of each cell.
    starts: Tensor
    # (pixels,) int32: cell of each pixel.
    cells: Tensor
    # (pixels,) float: share of the value i + 1; 0 in the last cell, whose pixels lie on the last value or beyond it.
    shares: Tensor


def line_tables(logits: CoarseLogits, dtype: torch.dtype) -> tuple[LineTables, LineTables]:
    """Of the rows and of the columns of the image; `dtype` is that of the shares."""
    coarse, device, align_corners = logits.values.shape[2:], logits.values.device, logits.align_corners
    sizes = zip(coarse, logits.size_hw, logits.shape[2:], strict=True)
    rows, columns = (_tables(*lengths, align_corners, dtype, device) for lengths in sizes)
    return rows, columns


# Kept: a copy to the device waits for it.
@lru_cache(maxsize=64)
def _tables(
    coarse: int, full: int, pixels: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> LineTables:
    position = source_positions(0, pixels, coarse, full, align_corners)
    cells = position.floor().long().clamp_max(coarse - 1)
    shares = torch.where(cells < coarse - 1, position - cells, 0.0)
    starts = torch.searchsorted(cells, torch.arange(coarse + 1))
    return LineTables(starts.to(device, torch.int32), cells.to(device, torch.int32), shares.to(device, dtype))
