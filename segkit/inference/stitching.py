"""Logits of overlapping windows blended into bands of finished rows, from the top of an image to its bottom.

The weight of a window is a Gaussian in rows times one in columns, and so is the sum of all weights: both are divided
by that sum before the first window comes. Windows are held until no later window touches their rows. Then these are
blended and handed on, a few at a time, so that they never leave the processor's cache. Where a network ends with an
upsampling, a window is held with upsampled columns but few rows, of which bands are upsampled in their turn. What is
held grows with the windows and with the width of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.inference.models import SegmentationModel
from segkit.ops.upsample import CoarseLogits, source_positions

_OVERLAP = 0.25
# Numbers in a band that is handed on. On a CPU 4 MiB of float32, which stay in the cache until they are decoded: with a
# quarter of it the calls take half as long again, and twice as much is no faster (one core of an AMD EPYC, 2026-11).
# On a GPU every band costs a launch of every kernel.
_BAND_NUMBERS = {"cpu": 2**20}
_GPU_BAND_NUMBERS = 2**24


def window_starts(length: int, side: int, overlap: float = _OVERLAP) -> list[int]:
    """Where windows of `side` start so that they cover `length`, evenly, neighbours sharing at least `overlap`."""
    if length <= side:
        return [0]
    step = max(1, int(side * (1.0 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


class Window(NamedTuple):
    """A window of an image.

    Attributes:
        number: of the image, the place of its grid among all grids.
        i, j: which window of the grid.
        pixels: (1, B, h, w) as stored, on the model's device.
    """

    number: int
    i: int
    j: int
    pixels: Tensor


Band = tuple[int, slice, Tensor]


@torch.no_grad()
def stitch(
    model: SegmentationModel, grids: Sequence[Grid], windows: Iterable[Window], batch_size: int
) -> Iterator[Band]:
    """(number of the image, rows, (C, R, W) float32 logits) of finished rows of each image, from top to bottom.

    Args:
        windows: of the first grid in its order, then of the next, and so on.
        batch_size: windows in one forward pass, of whatever images; fewer where the next is of another shape or dtype.
    """
    stitchers: dict[int, Stitcher] = {}
    for batch in _batches(windows, batch_size):
        pixels = [window.pixels for window in batch]
        logits = model.coarse_logits(pixels[0] if len(pixels) == 1 else torch.cat(pixels))
        for place, (number, i, j, _) in enumerate(batch):
            stitcher = stitchers.setdefault(number, Stitcher(grids[number]))
            for rows, band in stitcher.add(i, j, replace(logits, values=logits.values[place : place + 1])):
                yield number, rows, band
            if (i + 1, j + 1) == (len(grids[number].tops), len(grids[number].lefts)):
                del stitchers[number]


class Grid:
    """Windows of one shape that cover an image, or some columns of it.

    Attributes:
        size_hw: of the image.
        side_hw: of the windows, no larger than the image.
        columns: those that are wanted; windows that reach none of them are left out.
        tops, lefts: of the windows.
    """

    def __init__(self, size_hw: tuple[int, int], side: int, columns: slice | None = None) -> None:
        height, width = size_hw
        self.size_hw = size_hw
        self.side_hw = min(side, height), min(side, width)
        self.columns = slice(0, width) if columns is None else columns
        self.tops, self._row_weights = _line(height, self.side_hw[0])
        lefts, weights = _line(width, self.side_hw[1])
        wanted = [
            number
            for number, left in enumerate(lefts)
            if left < self.columns.stop and left + self.side_hw[1] > self.columns.start
        ]
        self.lefts = [lefts[number] for number in wanted]
        self._column_weights = [weights[number] for number in wanted]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(number of its row, number of its column) of each window, row by row."""
        for i in range(len(self.tops)):
            for j in range(len(self.lefts)):
                yield i, j

    def place(self, i: int, j: int) -> tuple[slice, slice]:
        """Rows and columns of the image in a window."""
        top, left = self.tops[i], self.lefts[j]
        return slice(top, top + self.side_hw[0]), slice(left, left + self.side_hw[1])

    def row_weights(self, i: int, device: torch.device) -> Tensor:
        """(window height,) float32: shares of row i of windows in its rows; those of all add up to 1."""
        return self._row_weights[i].to(device)

    def column_weights(self, j: int, device: torch.device) -> Tensor:
        """(window width,) float32: shares of column j of windows in its columns."""
        return self._column_weights[j].to(device)


class Stitcher:
    """Takes the windows of a grid in its order, and gives (rows, (C, R, W) float32 logits) of rows that are finished.

    W are the `columns` of the grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._lines: list[_WindowLine] = []

    def add(self, i: int, j: int, logits: CoarseLogits) -> Iterator[tuple[slice, Tensor]]:
        """The rows that are finished with window (i, j), whose logits stand for (1, C, window height, width)."""
        grid = self._grid
        if j == 0:
            self._lines.append(_WindowLine(grid, i))
        line = self._lines[-1]
        line.windows.append(_Held(logits))
        if j + 1 < len(grid.lefts):
            return
        start = grid.tops[i]
        stop = grid.tops[i + 1] if i + 1 < len(grid.tops) else grid.size_hw[0]
        # Rows that only one line of windows covers are not summed: a band starts where another line ends.
        edges = sorted({start, stop, *(edge for line in self._lines if start < (edge := line.bottom) < stop)})
        width = grid.columns.stop - grid.columns.start
        for first, last in pairwise(edges):
            for rows in _bands(first, last, logits.shape[1] * width, logits.values.device):
                yield rows, self._blended(rows, logits)
        self._lines = [line for line in self._lines if line.bottom > stop]
        for line in self._lines:
            line.forget_above(stop)

    def _blended(self, rows: slice, like: CoarseLogits) -> Tensor:
        columns = self._grid.columns
        shape = like.shape[1], rows.stop - rows.start, columns.stop - columns.start
        band = torch.empty(shape, device=like.values.device)
        covering = [line for line in self._lines if line.top < rows.stop and line.bottom > rows.start]
        for number, line in enumerate(covering):
            line.add_to(band, rows, is_first=number == 0, is_only=len(covering) == 1)
        return band


class RowResampler:
    """Bands of logits at one size to bands at another, bilinear, as `CoarseLogits` does without aligned corners."""

    def __init__(self, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
        self._from_hw, self._to_hw = from_hw, to_hw
        self._kept: Tensor | None = None  # rows that are still needed, the first of which is `_first`
        self._first = self._done = 0
        self._lines = source_positions(0, to_hw[0], from_hw[0], to_hw[0], align_corners=False)

    def add(self, rows: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, (C, R, W) logits) at the new size that are finished with these of the old one."""
        width = self._to_hw[1]
        wide = _across(logits, width, align_corners=False)
        kept = wide if self._kept is None else torch.cat([self._kept, wide], dim=1)
        last = rows.stop == self._from_hw[0]
        stop = self._to_hw[0] if last else int(torch.searchsorted(self._lines, float(rows.stop - 1)))
        for band in _bands(self._done, max(stop, self._done), len(kept) * width, kept.device):
            yield band, _between(kept, self._lines[band] - self._first)
        self._done = max(stop, self._done)
        if not last:
            first = int(self._lines[self._done]) if self._done < self._to_hw[0] else rows.stop - 1
            first = min(first, rows.stop - 1)
            self._kept, self._first = kept[:, first - self._first :].clone(), first


class _WindowLine:
    """Windows side by side, as far as they have come."""

    def __init__(self, grid: Grid, i: int) -> None:
        self._grid, self._i = grid, i
        self.top, self.bottom = grid.tops[i], grid.tops[i] + grid.side_hw[0]
        self.windows: list[_Held] = []

    def add_to(self, band: Tensor, rows: slice, is_first: bool, is_only: bool) -> None:
        """Add these rows of all windows to a (C, R, W) band, each pixel by the share of its window.

        Args:
            is_first: nothing was added to the band before.
            is_only: no other line has a part in it.
        """
        grid, columns = self._grid, self._grid.columns
        inside = slice(rows.start - self.top, rows.stop - self.top)
        filled = columns.start if is_first else columns.stop
        for j, (left, window) in enumerate(zip(grid.lefts, self.windows, strict=True)):
            values, weight = window.read(inside), grid.column_weights(j, band.device)
            if not is_only:
                weight = weight * grid.row_weights(self._i, band.device)[inside, None]
            start, stop = max(left, columns.start), min(left + grid.side_hw[1], columns.stop)
            middle = min(max(start, filled), stop)
            mine, place = slice(start - left, middle - left), slice(start - columns.start, middle - columns.start)
            band[..., place].addcmul_(values[..., mine], weight[..., mine])
            mine, place = slice(middle - left, stop - left), slice(middle - columns.start, stop - columns.start)
            torch.mul(values[..., mine], weight[..., mine], out=band[..., place])
            filled = max(filled, stop)

    def forget_above(self, row: int) -> None:
        """Keep what is needed for rows of the image from `row` on."""
        for window in self.windows:
            window.forget_above(row - self.top)


class _Held:
    """Logits of a window, with as many rows as the network computed."""

    def __init__(self, logits: CoarseLogits) -> None:
        self._size_hw, self._align_corners = logits.size_hw, logits.align_corners
        # Columns at once, while there are few rows; in bands a part of the rows would be upsampled over and over.
        values = logits.values[0]
        upsampled = values.shape[2] != self._size_hw[1]
        self._values = _across(values.float(), self._size_hw[1], self._align_corners) if upsampled else values
        self._coarse_h, self._forgotten = logits.values.shape[2], 0

    def read(self, rows: slice) -> Tensor:
        """(C, R, width) float32 of rows of the window; beyond its width, stride padding may follow."""
        if self._coarse_h == self._size_hw[0]:
            return self._values[:, rows.start - self._forgotten : rows.stop - self._forgotten].float()
        return _between(self._values, self._positions(rows) - self._forgotten)

    def forget_above(self, row: int) -> None:
        """Keep what is needed for rows from `row` on."""
        upsampled = self._coarse_h != self._size_hw[0]
        first = int(self._positions(slice(row, row + 1))[0]) if upsampled else row
        # A copy, or what is not needed would be kept with it.
        self._values, self._forgotten = self._values[:, first - self._forgotten :].clone(), first

    def _positions(self, rows: slice) -> Tensor:
        """Where rows of the window lie among those that were computed."""
        return source_positions(rows.start, rows.stop, self._coarse_h, self._size_hw[0], self._align_corners)


def _batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == batch_size or not _fit(batch[0].pixels, window.pixels)):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _fit(pixels: Tensor, others: Tensor) -> bool:
    return pixels.shape == others.shape and pixels.dtype == others.dtype


def _line(length: int, side: int) -> tuple[list[int], list[Tensor]]:
    """Starts of windows, and their shares in what they cover.

    A Gaussian trusts the middle of a window, where the network saw context on both sides; its deviation is an eighth
    of the window, as in nnU-Net (Isensee et al. 2021).
    """
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    gaussian = torch.exp(-0.5 * (offsets / (side / 8)) ** 2)
    starts = window_starts(length, side)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + side] += gaussian
    return starts, [(gaussian / total[start : start + side]).float() for start in starts]


def _bands(start: int, stop: int, numbers_per_row: int, device: torch.device) -> Iterator[slice]:
    rows = max(1, _BAND_NUMBERS.get(device.type, _GPU_BAND_NUMBERS) // numbers_per_row)
    for first in range(start, stop, rows):
        yield slice(first, min(stop, first + rows))


def _across(values: Tensor, width: int, align_corners: bool) -> Tensor:
    """(C, R, width): columns upsampled, rows as they are."""
    if values.shape[2] == width:
        return values
    size_hw = values.shape[1], width
    return F.interpolate(values[None], size_hw, mode="bilinear", align_corners=align_corners)[0]


def _between(values: Tensor, positions: Tensor) -> Tensor:
    """(C, R, W) float32 rows at fractional positions of (C, h, W), linear."""
    last = values.shape[1] - 1
    below = positions.floor().long().clamp_(0, last)
    share = (positions - below).to(values.device, torch.float32)[:, None]
    above = (below + 1).clamp_max_(last)
    first, end = int(below[0]), int(above[-1]) + 1
    near = values[:, first:end].float()
    low, high = (near.index_select(1, (line - first).to(values.device)) for line in (below, above))
    return low.lerp_(high, share)
