"""Logits at the resolution that a network computes them in, read tile by tile at the resolution of the mask.

Most decoders end with a bilinear upsampling. The upsampled logits are the largest tensor of a training step, and
every number in them is a mixture of four: so they are never built. A tile of them is, at a size that stays in the
CPU's cache, by two small matrix products: `rows · logits · columnsᵀ`. Their transposes take a gradient back, so that
both directions are exact, deterministic and the same for every factor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in a tile: 1 MiB of float32, half of it for each of two cores. 64 Ki to 512 Ki are alike, beyond it the time
# doubles (two cores of an AMD EPYC with 1 MiB of level-2 cache each, 2026-11).
_TILE_NUMBERS = 2**18
# On a GPU every tile costs a launch of every kernel: few and large.
_GPU_TILE_NUMBERS = 2**24
# Fewest columns of a tile of upsampled logits.
_TILE_COLUMNS = 64


@dataclass(frozen=True)
class CoarseLogits:
    """Logits before the bilinear upsampling that ends a network; also any other logits, with nothing to upsample.

    Attributes:
        values: (N, C, h, w) float.
        size_hw: height and width after upsampling.
        crop_hw: height and width of the image, which lies at the top left; the rest is stride padding, never read.
        align_corners: whether the corner pixels lie on the corner values, as `F.interpolate` means it.
    """

    values: Tensor
    size_hw: tuple[int, int]
    crop_hw: tuple[int, int] | None = None
    align_corners: bool = True

    @staticmethod
    def of(logits: Tensor | CoarseLogits) -> CoarseLogits:
        """Plain logits as they are, without upsampling."""
        if isinstance(logits, CoarseLogits):
            return logits
        return CoarseLogits(logits, (logits.shape[-2], logits.shape[-1]))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of the logits that these stand for."""
        height, width = self.size_hw if self.crop_hw is None else self.crop_hw
        return self.values.shape[0], self.values.shape[1], height, width

    @property
    def upsampled(self) -> bool:
        """False if every value is a pixel already."""
        return self.size_hw != tuple(self.values.shape[-2:])

    def full(self) -> Tensor:
        """(N, C, H, W) logits in the dtype of `values`; losses of `build_loss` and `format.decode` never build them."""
        height, width = self.shape[2:]
        values = self.values
        if self.upsampled:
            values = F.interpolate(values, self.size_hw, mode="bilinear", align_corners=self.align_corners)
        return values[..., :height, :width]


class Tile(NamedTuple):
    """A rectangle of R · W pixels, and the coarse values that it is made of."""

    rows: slice
    columns: slice
    coarse_rows: slice
    coarse_columns: slice
    # (R, coarse rows) and (coarse columns, W) matrices that make pixels of coarse values; None where they are pixels.
    mix: tuple[Tensor, Tensor] | None = None


class TileReader:
    """Reads coarse logits as (C, R · W) tiles of full resolution, and takes the gradients of tiles back.

    Attributes:
        dtype: of tiles: float64 for float64 logits, else float32.
        tiles: rectangles that cover one image; the same for each.
        patches_overlap: whether neighbouring tiles are made of the same coarse values.
    """

    def __init__(self, logits: CoarseLogits) -> None:
        self.values = logits.values
        self.dtype = torch.float64 if logits.values.dtype == torch.float64 else torch.float32
        self.patches_overlap = logits.upsampled
        self.tiles = list(_upsampled_tiles(logits, self.dtype) if logits.upsampled else _plain_tiles(logits))

    def with_values(self, values: Tensor) -> TileReader:
        """The same tiles of other values of the same shape."""
        other = copy.copy(self)
        other.values = values
        return other

    def __iter__(self) -> Iterator[tuple[int, Tile]]:
        """(number of an image, tile), every tile of every image."""
        for image in range(len(self.values)):
            for tile in self.tiles:
                yield image, tile

    def read(self, image: int, tile: Tile) -> Tensor:
        """(C, R · W) logits of a tile: a view of the logits where that is possible, else in `dtype`."""
        patch = self.values[image, :, tile.coarse_rows, tile.coarse_columns]
        if tile.mix is None:
            return patch.flatten(1)
        return _mixed(patch.to(self.dtype), *tile.mix).flatten(1)

    def pull_back(self, tile: Tile, of_tile: Tensor) -> Tensor:
        """(C, r, w) gradient of the coarse values of a tile from the (C, R · W) gradient of its logits."""
        of_tile = of_tile.unflatten(1, (tile.rows.stop - tile.rows.start, -1))
        if tile.mix is None:
            return of_tile
        down, across = tile.mix
        return _product(down.T, of_tile, across.T)

    def empty_gradient(self) -> Tensor:
        """A gradient for all values, to be filled by `add_gradient` over all images and tiles."""
        covered = (
            not self.patches_overlap
            and sum(_area(t) for t in self.tiles) == self.values.shape[2] * self.values.shape[3]
        )
        if covered:
            return torch.empty_like(self.values)  # every number of it will be written once
        dtype = self.dtype if self.patches_overlap else self.values.dtype
        return torch.zeros_like(self.values, dtype=dtype)

    def matrix_of(self, gradient: Tensor, image: int, tile: Tile) -> Tensor | None:
        """(C, R · W) memory of `gradient` that is the tile's alone; None where none has that shape and dtype."""
        if self.patches_overlap or gradient.dtype != self.dtype:
            return None
        place = gradient[image, :, tile.rows, tile.columns]
        matrix = place.flatten(1)
        return matrix if matrix.data_ptr() == place.data_ptr() else None

    def add_gradient(self, gradient: Tensor, image: int, tile: Tile, of_patch: Tensor) -> None:
        """Put what `pull_back` gave where the coarse values of the tile are; one after the other if patches overlap."""
        place = gradient[image, :, tile.coarse_rows, tile.coarse_columns]
        if self.patches_overlap:
            place += of_patch
        else:
            place.copy_(of_patch)


def _mixed(patch: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(C, R, W) pixels of (C, r, w) coarse values. One that is not finite reaches the pixels that it is a part of.

    In a product it would reach all, since 0 times infinity is NaN.
    """
    if patch.device.type == "cpu" and bool(patch.isfinite().all()):
        return _product(down, patch, across)
    pixels = _product(down, patch.nan_to_num(0.0, 0.0, 0.0), across)
    wild = (patch.isposinf(), patch.isneginf(), patch.isnan())
    above, below, unknown = (_product(down, found.to(patch.dtype), across) > 0 for found in wild)
    pixels = pixels.masked_fill(above, torch.inf).masked_fill(below, -torch.inf)
    return pixels.masked_fill(unknown | (above & below), torch.nan)


def _product(down: Tensor, values: Tensor, across: Tensor) -> Tensor:
    return torch.matmul(down, torch.matmul(values, across))


def _area(tile: Tile) -> int:
    return (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)


def _tile_numbers(logits: CoarseLogits) -> int:
    return _TILE_NUMBERS if logits.values.device.type == "cpu" else _GPU_TILE_NUMBERS


def _plain_tiles(logits: CoarseLogits) -> Iterator[Tile]:
    _, channels, height, width = logits.shape
    # Whole lines: in memory they follow each other, so that a tile is a matrix without being copied.
    lines = max(1, _tile_numbers(logits) // max(1, channels * width))
    columns = slice(0, width)
    for rows in _steps(height, lines):
        yield Tile(rows, columns, rows, columns)


def _upsampled_tiles(logits: CoarseLogits, dtype: torch.dtype) -> Iterator[Tile]:
    _, channels, height, width = logits.shape
    (coarse_h, coarse_w), (full_h, full_w) = logits.values.shape[-2:], logits.size_hw
    place = (logits.align_corners, dtype, logits.values.device)
    # Nearly square: a wide tile needs many coarse columns, so its matrix product grows; a flat one repeats rows.
    numbers, side = _tile_numbers(logits), _TILE_COLUMNS
    while 4 * side * side * channels <= numbers:
        side *= 2
    lines = max(1, numbers // max(1, channels * min(width, side)))
    across = [_weights(columns, coarse_w, full_w, *place) for columns in _steps(width, side)]
    for rows in _steps(height, lines):
        coarse_rows, row_weights = _weights(rows, coarse_h, full_h, *place)
        for columns, (coarse_columns, column_weights) in zip(_steps(width, side), across, strict=True):
            yield Tile(rows, columns, coarse_rows, coarse_columns, (row_weights, column_weights.T))


def _steps(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(length, start + step))


def source_positions(start: int, stop: int, coarse: int, full: int, align_corners: bool) -> Tensor:
    """(n,) float64: where the pixels `start` to `stop` of a line of `full` lie in a line of `coarse` values."""
    pixels = torch.arange(start, stop, dtype=torch.float64)
    if align_corners:
        return pixels * ((coarse - 1) / (full - 1)) if full > 1 else torch.zeros_like(pixels)
    return ((pixels + 0.5) * (coarse / full) - 0.5).clamp_min(0.0)


def _weights(
    pixels: slice, coarse: int, full: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[slice, Tensor]:
    """The coarse values that a run of pixels is made of, and the (pixels, coarse values) matrix that makes them."""
    position = source_positions(pixels.start, pixels.stop, coarse, full, align_corners)
    below = position.floor().long().clamp_max(coarse - 1)
    above = (below + 1).clamp_max(coarse - 1)
    share = position - below
    first, last = int(below[0]), int(above[-1])
    matrix = torch.zeros((len(position), last - first + 1), dtype=torch.float64)
    line = torch.arange(len(position))
    matrix[line, below - first] += 1.0 - share
    matrix[line, above - first] += share
    return slice(first, last + 1), matrix.to(device, dtype)
