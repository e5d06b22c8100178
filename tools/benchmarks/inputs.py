"""Tensors that look like segmentation: connected regions, not noise, which gathers and histograms meet in practice."""

from __future__ import annotations

import torch
from torch import Tensor

# Side of the squares that regions are made of, in pixels.
_SQUARE = 16


def class_planes(n: int, classes: int, size_hw: tuple[int, int], seed: int = 0) -> Tensor:
    """(N, 1, H, W) uint8 class indices in squares; every class occurs."""
    rows, columns = (-(-side // _SQUARE) for side in size_hw)
    squares = torch.arange(n * rows * columns) % classes
    shuffled = squares[torch.randperm(len(squares), generator=_seeded(seed))].view(n, 1, rows, columns)
    return _to_pixels(shuffled.to(torch.uint8), size_hw)


def overlapping_planes(n: int, classes: int, size_hw: tuple[int, int], seed: int = 0) -> Tensor:
    """(N, C, H, W) uint8, 0 or 1 in squares, a third of them 1."""
    rows, columns = (-(-side // _SQUARE) for side in size_hw)
    squares = torch.rand((n, classes, rows, columns), generator=_seeded(seed)) < 1 / 3
    return _to_pixels(squares.to(torch.uint8), size_hw)


def with_ignored(planes: Tensor, ignore_index: int = 255) -> Tensor:
    """The same with a border and every ninth row ignored, as street scenes have it."""
    planes = planes.clone()
    planes[..., ::9, :] = ignore_index
    planes[..., : planes.shape[-1] // 20] = ignore_index
    return planes


def disturbed(planes: Tensor, classes: int, seed: int = 1) -> Tensor:
    """A prediction that is right in four of five squares."""
    n, planes_each, h, w = planes.shape
    wrong = torch.rand((n, planes_each, -(-h // _SQUARE), -(-w // _SQUARE)), generator=_seeded(seed)) < 0.2
    return torch.where(_to_pixels(wrong.to(torch.uint8), (h, w)).bool(), (planes + 1) % classes, planes)


def random_logits(n: int, classes: int, size_hw: tuple[int, int], seed: int = 2) -> Tensor:
    """(N, C, H, W) float32."""
    return torch.randn((n, classes, *size_hw), generator=_seeded(seed))


def _to_pixels(squares: Tensor, size_hw: tuple[int, int]) -> Tensor:
    pixels = squares.repeat_interleave(_SQUARE, 2).repeat_interleave(_SQUARE, 3)
    return pixels[..., : size_hw[0], : size_hw[1]].contiguous()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
