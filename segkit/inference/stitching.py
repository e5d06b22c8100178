"""Logits of overlapping windows blended into bands of finished rows, from the top of an image to its bottom.

The weight of a window is a Gaussian in rows times one in columns, and so is the sum of all weights: both are divided
by that sum before the first window comes. What follows is linear in each direction. Windows are upsampled (where the
network left that out) and blended across the columns while they have few rows; down the rows it is done for the rows
that no later window touches, which are handed on. What is kept grows with the windows and with the width of the image.
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
# Numbers in a band that is handed on: 16 MiB of float32.
_BAND_NUMBERS = 2**22


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
        logits = model.coarse_logits(torch.cat([window.pixels for window in batch]))
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

    W are the `columns` of the grid. A band may be a view that the next window overwrites.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._lines: list[_WindowLine] = []
        # Memory of a line that has been read: asking the system for new pages takes as long as writing them.
        self._spare: Tensor | None = None

    def add(self, i: int, j: int, logits: CoarseLogits) -> Iterator[tuple[slice, Tensor]]:
        """The rows that are finished with window (i, j), whose logits stand for (1, C, window height, width)."""
        grid = self._grid
        if j == 0:
            self._lines.append(_WindowLine(grid, i, logits, self._spare))
            self._spare = None
        line = self._lines[-1]
        line.add(j, logits)
        if j + 1 < len(grid.lefts):
            return
        start = grid.tops[i]
        stop = grid.tops[i + 1] if i + 1 < len(grid.tops) else grid.size_hw[0]
        # Rows that only one line of windows covers are not summed: a band starts where another line ends.
        edges = sorted({start, stop, *(edge for line in self._lines if start < (edge := line.bottom) < stop)})
        for first, last in pairwise(edges):
            for rows in line.bands(first, last):
                yield rows, self._blended(rows)
        self._lines = [line for line in self._lines if line.bottom > stop]
        if self._lines and self._lines[-1] is line:
            self._spare = line.forget_above(stop)

    def _blended(self, rows: slice) -> Tensor:
        covering = [line for line in self._lines if line.top < rows.stop and line.bottom > rows.start]
        if len(covering) == 1:
            return covering[0].read(rows)
        total: Tensor | None = None
        for line in covering:
            values, weight = line.read(rows), line.weight[rows.start - line.top : rows.stop - line.top, None]
            total = values * weight if total is None else total.addcmul_(values, weight)
        assert total is not None
        return total


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
        wide = _across(logits[None], width, align_corners=False)[0]
        kept = wide if self._kept is None else torch.cat([self._kept, wide], dim=1)
        last = rows.stop == self._from_hw[0]
        stop = self._to_hw[0] if last else int(torch.searchsorted(self._lines, float(rows.stop - 1)))
        for band in _bands(self._done, max(stop, self._done), len(kept) * width):
            yield band, _between(kept, self._lines[band] - self._first)
        self._done = max(stop, self._done)
        if not last:
            first = int(self._lines[self._done]) if self._done < self._to_hw[0] else rows.stop - 1
            first = min(first, rows.stop - 1)
            self._kept, self._first = kept[:, first - self._first :].clone(), first


class _WindowLine:
    """A row of windows, blended across the columns: (C, h, W), where h are the rows that the network computed."""

    def __init__(self, grid: Grid, i: int, logits: CoarseLogits, memory: Tensor | None) -> None:
        values = logits.values
        self._grid, self._size_h, self._align_corners = grid, logits.size_hw[0], logits.align_corners
        self.top, self.bottom = grid.tops[i], grid.tops[i] + grid.side_hw[0]
        self.weight = grid.row_weights(i, values.device)
        shape = values.shape[1], values.shape[2], grid.columns.stop - grid.columns.start
        if memory is None or memory.shape != shape or memory.device != values.device:
            memory = torch.empty(shape, device=values.device)
        self._values = memory
        self._coarse_h, self._forgotten = shape[1], 0
        self._filled = grid.columns.start

    @property
    def _upsampled(self) -> bool:
        return self._coarse_h != self._size_h

    def add(self, j: int, logits: CoarseLogits) -> None:
        """Blend window j in."""
        if logits.values.shape[2] != self._coarse_h:
            # Another thread in the same network had its last upsampling put back, or left out.
            logits = CoarseLogits.of(logits.full())
            self._refine()
        values = _across(logits.values.float(), logits.size_hw[1], logits.align_corners)[0]
        weight = self._grid.column_weights(j, values.device)
        columns, left = self._grid.columns, self._grid.lefts[j]
        start, stop = max(left, columns.start), min(left + self._grid.side_hw[1], columns.stop)
        middle = min(max(start, self._filled), stop)
        if start < middle:
            mine, place = slice(start - left, middle - left), slice(start - columns.start, middle - columns.start)
            self._values[..., place].addcmul_(values[..., mine], weight[mine])
        mine, place = slice(middle - left, stop - left), slice(middle - columns.start, stop - columns.start)
        torch.mul(values[..., mine], weight[mine], out=self._values[..., place])
        self._filled = max(self._filled, stop)

    def read(self, rows: slice) -> Tensor:
        """(C, R, W) of rows of the image."""
        if not self._upsampled:
            shift = self.top + self._forgotten
            return self._values[:, rows.start - shift : rows.stop - shift]
        return _between(self._values, self._positions(rows) - self._forgotten)

    def bands(self, start: int, stop: int) -> Iterator[slice]:
        """Rows that are read at once."""
        return _bands(start, stop, self._values.shape[0] * self._values.shape[2])

    def forget_above(self, row: int) -> Tensor:
        """Keep what is needed for rows from `row` on; the memory that held all."""
        whole = self._values
        first = int(self._positions(slice(row, row + 1))[0]) if self._upsampled else row - self.top
        self._values, self._forgotten = whole[:, first - self._forgotten :].clone(), first
        return whole

    def _positions(self, rows: slice) -> Tensor:
        """Where rows of the image lie among those that were computed."""
        line = rows.start - self.top, rows.stop - self.top
        return source_positions(*line, self._coarse_h, self._size_h, self._align_corners)

    def _refine(self) -> None:
        """Go on with a row of values for each row of pixels."""
        if self._upsampled:
            height = self._grid.side_hw[0]
            self._values = _between(self._values, self._positions(slice(self.top, self.top + height)))
            self._coarse_h = self._size_h = height


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


def _bands(start: int, stop: int, numbers_per_row: int) -> Iterator[slice]:
    rows = max(1, _BAND_NUMBERS // numbers_per_row)
    for first in range(start, stop, rows):
        yield slice(first, min(stop, first + rows))


def _across(values: Tensor, width: int, align_corners: bool) -> Tensor:
    """(N, C, h, width): columns upsampled, rows as they are."""
    if values.shape[3] == width:
        return values
    return F.interpolate(values, (values.shape[2], width), mode="bilinear", align_corners=align_corners)


def _between(values: Tensor, positions: Tensor) -> Tensor:
    """(C, R, W) rows at fractional positions of (C, h, W), linear."""
    last = values.shape[1] - 1
    below = positions.floor().long().clamp_(0, last)
    share = (positions - below).to(values.device, values.dtype)[:, None]
    above = (below + 1).clamp_max_(last)
    first, end = int(below[0]), int(above[-1]) + 1
    near = values[:, first:end]
    low, high = (near.index_select(1, (line - first).to(values.device)) for line in (below, above))
    return low.lerp_(high, share)
