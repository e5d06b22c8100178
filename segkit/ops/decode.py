"""From logits to planes, tile by tile: upsampled logits are never built.

On CUDA, `segkit.ops.decode_triton` does the same in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segkit.ops.backend import runs_triton
from segkit.ops.choices import at_least_float32
from segkit.ops.parallel import in_order
from segkit.ops.upsample import CoarseLogits, Tile, TileReader


def decode_indices(logits: CoarseLogits, dtype: torch.dtype, limit: float | None = None, none_index: int = 0) -> Tensor:
    """Class of the highest logit of each pixel; of equals the first, and NaN counts as highest.

    Args:
        logits: stand for (N, C, H, W).
        dtype: of the result.
        limit: a pixel whose highest logit is not above it gets `none_index`; None takes the best class always.

    Returns:
        (N, 1, H, W) class indices.
    """
    if _has_kernel(logits):
        import segkit.ops.decode_triton as kernels

        return kernels.decode_indices(logits, dtype, limit, none_index)
    n, _, height, width = logits.shape
    reader = TileReader(logits)
    result = torch.empty((n, 1, height, width), dtype=dtype, device=logits.values.device)

    def decode(place: tuple[int, Tile]) -> None:
        image, tile = place
        best, index = _first_highest(reader.read(image, tile))
        if limit is not None:
            index = torch.where(at_least_float32(best) > limit, index, none_index)
        planes = result[image, 0, tile.rows, tile.columns]
        planes.copy_(index.view_as(planes))

    for _ in in_order(decode, reader, result.device):
        pass
    return result


def decode_above(logits: CoarseLogits, limits: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) of 1 where the logit is above the limit of its class, one in `limits` for each, and 0 elsewhere."""
    if _has_kernel(logits):
        import segkit.ops.decode_triton as kernels

        return kernels.decode_above(logits, limits, dtype)
    reader = TileReader(logits)
    borders = torch.tensor(limits, dtype=reader.dtype, device=logits.values.device)[:, None]
    result = torch.empty(logits.shape, dtype=dtype, device=logits.values.device)

    def decode(place: tuple[int, Tile]) -> None:
        image, tile = place
        # bfloat16 has too few digits for a threshold.
        above = at_least_float32(reader.read(image, tile)) > borders
        planes = result[image, :, tile.rows, tile.columns]
        planes.copy_(above.view_as(planes))

    for _ in in_order(decode, reader, result.device):
        pass
    return result


def plain_indices(logits: Tensor, dtype: torch.dtype, limit: float | None = None, none_index: int = 0) -> Tensor:
    """`decode_indices` of (N, C, H, W) logits in a few operations on whole tensors, which exporters can follow."""
    best, index = at_least_float32(logits).max(1, keepdim=True)
    return (index if limit is None else torch.where(best > limit, index, none_index)).to(dtype)


def plain_above(logits: Tensor, limits: Sequence[float], dtype: torch.dtype) -> Tensor:
    """`decode_above` of (N, C, H, W) logits in a few operations on whole tensors, which exporters can follow."""
    borders = torch.tensor(limits, device=logits.device).view(1, -1, 1, 1)
    return (at_least_float32(logits) > borders).to(dtype)


def _has_kernel(logits: CoarseLogits) -> bool:
    return runs_triton(logits.values.device) and math.prod(logits.shape) > 0


def _first_highest(z: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) highest of (C, n) logits, and the index of the first class that has it."""
    if z.device.type != "cpu":
        return z.max(0)
    # max() with indices compares one number at a time: three vectorized passes take a third of its time on a CPU.
    z = z.contiguous()
    best = z.amax(0)
    if best.isnan().any():
        return z.max(0)
    c = len(z)
    small = torch.uint8 if c <= 255 else torch.int32
    # C for the first class down to 1 for the last: the largest that is still there is the first that was equal.
    places = torch.arange(c, 0, -1, dtype=small, device=z.device)
    return best, c - ((z == best) * places[:, None]).amax(0).long()
