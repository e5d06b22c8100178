"""The soft skeleton of a map: what thinning leaves of it, with a gradient (Shit et al. 2021, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# (down, right)
_ACROSS = ((0, -1), (0, 1))
_DOWN = ((-1, 0), (1, 0))


def soft_skeleton(maps: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """Centre lines of what is bright.

    Each round takes a pixel off every border, and keeps what an opening would lose.

    Args:
        maps: (N, C, H, W) float in [0, 1].
        valid: bool of that shape; False pixels are taken as those beyond the edge of the image, which neither thin
            nor thicken what is near them, and are 0 in the result.
        iterations: rounds; a line wider than about twice as many pixels leaves nothing.

    Returns:
        (N, C, H, W) like `maps`, in [0, 1].
    """
    thinner = _erode(maps, valid)
    skeleton = F.relu(maps - _dilate(thinner, valid))
    for _ in range(iterations):
        maps, thinner = thinner, _erode(thinner, valid)
        lost = F.relu(maps - _dilate(thinner, valid))
        skeleton = skeleton + F.relu(lost - skeleton * lost)
    return torch.where(valid, skeleton, 0.0)


def _erode(maps: Tensor, valid: Tensor) -> Tensor:
    """Least of a pixel and its four neighbours."""
    return -_Largest.apply(-torch.where(valid, maps, 1.0), (*_ACROSS, *_DOWN))


def _dilate(maps: Tensor, valid: Tensor) -> Tensor:
    """Largest of a pixel and its eight neighbours."""
    return _Largest.apply(_Largest.apply(torch.where(valid, maps, 0.0), _ACROSS), _DOWN)


class _Largest(torch.autograd.Function):
    """Largest of every pixel and its neighbours inside the map; among equals the gradient goes to the first.

    In this way, and not by `F.max_pool2d`, whose forward takes ten times as long on a CPU (four maps of 320 x 320, one
    core of an AMD EPYC, 2026-11), and which keeps indices of eight bytes for the way back.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, moves: tuple[tuple[int, int], ...]) -> Tensor:
        largest = maps.clone()
        for move in moves:
            here, there = _windows(move, maps)
            torch.maximum(largest[here], maps[there], out=largest[here])
        ctx.save_for_backward(maps, largest)
        ctx.moves = moves
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        maps, largest = ctx.saved_tensors
        result = _equal(maps, largest).mul_(grad)
        rest = grad - result
        for move in ctx.moves:
            here, there = _windows(move, maps)
            share = _equal(maps[there], largest[here]).mul_(rest[here])
            result[there] += share
            rest[here] -= share
        return result, None


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """1 where equal, else 0, as numbers at once: by way of bools a CPU takes ten times as long."""
    return torch.eq(a, b, out=torch.empty(a.shape, dtype=a.dtype, device=a.device))


def _windows(move: tuple[int, int], maps: Tensor) -> tuple[Any, Any]:
    """The pixels that have a neighbour `move` (down, right) away, and those neighbours."""
    here, there = zip(*(_overlap(step, size) for step, size in zip(move, maps.shape[-2:], strict=True)), strict=True)
    return (..., *here), (..., *there)


def _overlap(step: int, size: int) -> tuple[slice, slice]:
    return slice(max(0, -step), size - max(0, step)), slice(max(0, step), size - max(0, -step))
