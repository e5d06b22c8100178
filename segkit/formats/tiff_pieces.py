"""Tiled TIFF files written from pieces, for images that are never in memory as a whole."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from segkit.formats.codec import PIECE_STEP
from segkit.formats.files import writing_whole
from segkit.formats.georeference import Georeference
from segkit.formats.tiff_pages import PAGE_NAME

# Columns of pieces start and end where tiles do.
TILE = PIECE_STEP
# Time grows with the level, and masks hardly shrink further.
_LEVEL = 6

# Takes rows, columns and their (h, w, pages) samples.
PutSamples = Callable[[slice, slice, np.ndarray], None]


@contextmanager
def writing_tiles(
    path: str | Path,
    size_hw: tuple[int, int],
    pages: int,
    dtype: np.dtype,
    names: Sequence[str] = (),
    georeference: Georeference | None = None,
) -> Iterator[PutSamples]:
    """Gives a function that takes pieces of a BigTIFF of `pages` pages, see `TilePieces.put`.

    The file is written at the end, whole or not at all.

    Tiles are compressed as they are complete, and wait in a file beside `path` that has no name.

    Args:
        dtype: of the samples.
        names: of the pages, if they have any.
        georeference: of the first page, in which readers look for it.
    """
    with writing_whole(path) as file, tempfile.TemporaryFile(dir=Path(path).parent) as spool:
        pieces = TilePieces(size_hw, pages, dtype, spool)
        yield pieces.put
        with tifffile.TiffWriter(file, bigtiff=True) as tiff:
            for page in range(pages):
                tags: list[Any] = [] if georeference is None or page else list(georeference.tags)
                if names:
                    tags.append((PAGE_NAME, "s", 0, names[page].encode(), True))
                tiff.write(
                    pieces.compressed(page),
                    shape=size_hw,
                    dtype=dtype,
                    tile=(TILE, TILE),
                    photometric="minisblack",
                    compression="zlib",
                    # No time nor program: the same labels are the same file.
                    software=False,
                    metadata=None,
                    extratags=tags,
                )


class TilePieces:
    """Pixels on their way into tiles."""

    def __init__(self, size_hw: tuple[int, int], pages: int, dtype: np.dtype, spool: BinaryIO) -> None:
        self._size_hw, self._pages, self._dtype, self._spool = size_hw, pages, dtype, spool
        self._down, self._across = (math.ceil(side / TILE) for side in size_hw)
        # Page, line of tiles, column of tiles -> where it lies in the spool.
        self._places: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._line: np.ndarray | None = None

    def put(self, rows: slice, columns: slice, samples: np.ndarray) -> None:
        """Take (h, w, pages) samples of these rows and columns.

        Columns start and end where tiles do, or at the right end. For given columns, rows come from top to bottom
        without gaps.
        """
        for start in range(rows.start // TILE * TILE, rows.stop, TILE):
            first, last = max(start, rows.start), min(start + TILE, rows.stop)
            if first == start:
                width = math.ceil((columns.stop - columns.start) / TILE) * TILE
                self._line = np.zeros((self._pages, TILE, width), self._dtype)
            assert self._line is not None
            part = samples[first - rows.start : last - rows.start]
            self._line[:, first - start : last - start, : part.shape[1]] = np.moveaxis(part, 2, 0)
            if last == min(start + TILE, self._size_hw[0]):
                self._compress(start // TILE, columns.start // TILE)

    def compressed(self, page: int) -> Iterator[bytes]:
        """All tiles of a page in the order of the file."""
        for i in range(self._down):
            for j in range(self._across):
                offset, count = self._places[page, i, j]
                self._spool.seek(offset)
                yield self._spool.read(count)

    def _compress(self, i: int, first: int) -> None:
        assert self._line is not None
        self._spool.seek(0, 2)
        for page, line in enumerate(self._line):
            for j in range(line.shape[1] // TILE):
                content = zlib.compress(line[:, j * TILE : (j + 1) * TILE].tobytes(), _LEVEL)
                self._places[page, i, first + j] = self._spool.tell(), len(content)
                self._spool.write(content)
        self._line = None
