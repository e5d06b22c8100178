"""Windows of TIFF files that need not fit into memory: what `tiff_files` reads whole, read tile by tile."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from segkit.formats.image_checks import is_tiff
from segkit.formats.image_pixels import check_pixels
from segkit.formats.limits import max_windowed_pixels
from segkit.formats.tiff_files import Refused, as_colours, as_depth, check_chain, check_colours, check_page, tag_value

# A tile or strip is decoded at once.
_MAX_PART_BYTES = 2**28
_JPEG = (6, 7, 33007, 34892)


def tiff_size_hw(path: str | Path) -> tuple[int, int] | None:
    """(height, width) that the header of a TIFF file declares; None for any other file, and for a damaged one."""
    try:
        with Path(path).open("rb") as file:
            if not is_tiff(file.read(4)):
                return None
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            page: Any = tiff.pages[0]
            return page.imagelength, page.imagewidth
    except Exception:  # tifffile raises many kinds, down to struct.error
        return None


class _Part(NamedTuple):
    """A tile or strip.

    Attributes:
        top, left: where its first pixel is in the image.
        samples: (h, w, samples) as stored.
    """

    top: int
    left: int
    samples: np.ndarray


class TiffWindows:
    """The first picture of a TIFF file, read by windows; a context manager that closes the file.

    What is decoded is kept until a window below it, or above it, is asked for: windows that come line by line decode
    each tile or strip once for each line that touches it.

    Args:
        path: tiles or strips with any compression that `read_image_file` takes; bands interleaved, planar, or a page
            each.
        gray: as for `read_image_file`.

    Raises:
        ValueError: names the file and what is wrong with it: damaged, too large, turned, or parts too large to decode.
    """

    def __init__(self, path: str | Path, gray: bool | None = False) -> None:
        self.path, self._gray = Path(path), gray
        self._parts: dict[tuple[int, int], _Part] = {}
        self._columns: slice | None = None
        # Damage is raised below with the name of the file; tifffile would print it as well.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        try:
            # Not other files, which the description of an OME-TIFF may name.
            self._file = tifffile.TiffFile(path, _multifile=False)
        except Exception as error:  # tifffile raises many kinds, down to struct.error
            raise self._undecodable(error) from None
        try:
            self._pages, self._key = self._open_pages()
        except Exception as error:
            self._file.close()
            raise self._undecodable(error) from None
        self.size_hw: tuple[int, int] = (self._key.imagelength, self._key.imagewidth)

    def __enter__(self) -> TiffWindows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep(self, columns: slice) -> None:
        """From now on windows lie within these columns; of strips, which are as wide as the image, no more is kept."""
        self._columns = columns
        self._parts.clear()

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w, B) pixels as `read_image_file` gives those of a whole file."""
        self._parts = {
            place: part
            for place, part in self._parts.items()
            if part.top < rows.stop and part.top + len(part.samples) > rows.start
        }
        try:
            stored = np.concatenate([self._read_page(number, rows, columns) for number in range(len(self._pages))], 2)
            image = as_depth(stored, self._key)
            image = np.ascontiguousarray(as_colours(image, self._key, self._gray) if image.dtype == np.uint8 else image)
        except Exception as error:
            raise self._undecodable(error) from None
        if image.dtype == np.float32 and not np.isfinite(image).all():
            raise ValueError(
                f"{self.path}: values in rows {rows.start} to {rows.stop} are NaN or infinite, of which no model makes "
                "anything. Replace them by a number."
            )
        return image

    def _undecodable(self, error: Exception) -> ValueError:
        told = (
            error
            if isinstance(error, Refused)
            else f"cannot be decoded as a TIFF image ({error or type(error).__name__})"
        )
        return ValueError(f"{self.path}: the file {told}. Restore it, or store it anew as a tiled TIFF of one picture.")

    def _open_pages(self) -> tuple[list[Any], Any]:
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_chain(content)
            series = self._file.series[0]
            key: Any = series.keyframe
            try:
                check_pixels((key.imagelength, key.imagewidth), max_windowed_pixels())
            except ValueError as error:
                raise Refused(str(error)) from None
            check_colours(key)
            pages = list(series.pages)
            self._check_layout(series, key, pages)
            for page in pages:
                check_page(page, content)
        return pages, key

    def _check_layout(self, series: Any, key: Any, pages: list[Any]) -> None:
        count = key.imagelength * key.imagewidth * key.samplesperpixel * len(pages)
        stacked = len(pages) > 1 and key.samplesperpixel > 1
        if stacked or key.imagedepth != 1 or None in pages or math.prod(series.shape) != count:
            shape = "x".join(map(str, series.shape))
            raise Refused(f"holds an array of shape {shape} (axes {series.axes}), expected one picture")
        if len(pages) > 1 and key.imagewidth < min(len(pages), key.imagelength):
            raise Refused(f"holds {len(pages)} pages of {key.imagelength}x{key.imagewidth}, expected a page per band")
        if int(tag_value(key, "Orientation", 1)) != 1:
            raise Refused("is stored turned (tag Orientation), expected rows from top to bottom")
        part_bytes = (
            math.prod(_part_size(key)) * key.dtype.itemsize * (key.samplesperpixel if key.planarconfig == 1 else 1)
        )
        if not key.is_contiguous and part_bytes > _MAX_PART_BYTES:
            raise Refused(
                f"is compressed in parts of {part_bytes / 2**20:.0f} MiB, each of which is decoded as a whole: "
                f"expected at most {_MAX_PART_BYTES / 2**20:.0f} MiB"
            )

    def _read_page(self, number: int, rows: slice, columns: slice) -> np.ndarray:
        """(h, w, samples) as stored."""
        key = self._key
        if key.is_contiguous:
            return self._read_lines(number, rows, columns)
        shape = rows.stop - rows.start, columns.stop - columns.start, key.samplesperpixel
        window = np.empty(shape, key.dtype)
        for sample, index in self._indices(rows, columns):
            part = self._parts.get((number, index))
            if part is None:
                part = self._parts[number, index] = self._decode(number, index)
            samples = slice(None) if key.planarconfig == 1 else slice(sample, sample + 1)
            down, part_down = _shared(rows, part.top, part.samples.shape[0])
            across, part_across = _shared(columns, part.left, part.samples.shape[1])
            window[down, across, samples] = part.samples[part_down, part_across]
        return window

    def _read_lines(self, number: int, rows: slice, columns: slice) -> np.ndarray:
        """(h, w, samples) of a page that is stored line by line, without compression."""
        key, file = self._key, self._file.filehandle
        dtype = key.dtype.newbyteorder(self._file.byteorder)
        planes, samples = (1, key.samplesperpixel) if key.planarconfig == 1 else (key.samplesperpixel, 1)
        pixel, width = samples * dtype.itemsize, columns.stop - columns.start
        window = np.empty((rows.stop - rows.start, width, planes * samples), dtype)
        for plane in range(planes):
            place = slice(plane * samples, (plane + 1) * samples)
            for row in range(rows.start, rows.stop):
                line = (plane * key.imagelength + row) * key.imagewidth + columns.start
                file.seek(self._pages[number].dataoffsets[0] + line * pixel)
                window[row - rows.start, :, place] = np.frombuffer(file.read(width * pixel), dtype).reshape(-1, samples)
        return window

    def _indices(self, rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
        """(sample, index) of the tiles or strips in a window; the sample is 0 where they hold all."""
        key = self._key
        length, width = _part_size(key)
        down, across = math.ceil(key.imagelength / length), math.ceil(key.imagewidth / width)
        for sample in range(1 if key.planarconfig == 1 else key.samplesperpixel):
            for i in range(rows.start // length, (rows.stop - 1) // length + 1):
                for j in range(columns.start // width, (columns.stop - 1) // width + 1):
                    yield sample, (sample * down + i) * across + j

    def _decode(self, number: int, index: int) -> _Part:
        key, page, file = self._key, self._pages[number], self._file.filehandle
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        content = None
        if offset and count:  # or the part is empty
            file.seek(offset)
            content = file.read(count)
        options = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in _JPEG else {}
        samples, (_, _, top, left, _), shape = key.decode(content, index, **options)
        if samples is None:
            samples = np.full(shape, key.nodata, key.dtype)
        # Tiles reach beyond the image.
        samples = samples[0, : key.imagelength - top, : key.imagewidth - left]
        if self._columns is not None:
            start, stop = max(self._columns.start, left), min(self._columns.stop, left + samples.shape[1])
            if stop - start < samples.shape[1]:
                samples, left = samples[:, start - left : stop - left].copy(), start
        return _Part(top, left, samples)


def _part_size(key: Any) -> tuple[int, int]:
    """(height, width) of tiles or strips."""
    if key.is_tiled:
        return key.tilelength, key.tilewidth
    return min(key.rowsperstrip, key.imagelength), key.imagewidth


def _shared(line: slice, start: int, length: int) -> tuple[slice, slice]:
    """What a window and a part have in common, counted from the start of the one and of the other."""
    first, last = max(line.start, start), min(line.stop, start + length)
    return slice(first - line.start, last - line.start), slice(first - start, last - start)
