"""Masks in TIFF files: one number per pixel, or a page for each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.codec import Codec, PutPlanes
from segkit.formats.files import existing, find_files, find_path
from segkit.formats.georeference import read_georeference
from segkit.formats.image_files import TIFF_SUFFIXES
from segkit.formats.mark_values import MarkValues
from segkit.formats.mask_format import MaskFormat
from segkit.formats.pixel_values import StoredValues, pixel_values
from segkit.formats.tiff_pages import TiffLayers, read_layers, write_layers


class Tiff(Codec):
    """One file `STEM.tif` or `STEM.tiff` for each mask, read with any compression, tiles, byte order, and as BigTIFF.

    Samples are taken as stored, whatever colours a viewer would show. Written files are compressed without loss and
    have 8 bits, 16 where a value is above 255. A coordinate system and transform of the input (GeoTIFF) are kept.

    Without `values`, classes that may overlap have a page each (or a sample of one page), in the order of the
    classes: 0 where the class is not, one other value where it is. Pages may have names, and written pages do; a page
    that is named like another class is an error.

    Args:
        format: any.
        values: disk value -> class name or list of them, for files of one number per pixel; see `pixel_values`.
        ignored_values: disk values that mean "do not look here"; the first is written.
        present_values: for pages of classes: disk values that mark the class, see `MarkValues`.
    """

    name = "tiff"
    writes_pieces = True

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, Any] | None = None,
        ignored_values: Iterable[int] = (),
        present_values: Iterable[int] | None = None,
    ) -> None:
        super().__init__(format)
        by_page = format.num_planes > 1 and values is None
        if present_values is not None and not by_page:
            raise ValueError(
                "tiff: `present_values` is for classes that may overlap and have a page each. "
                "Say in `values` which value is which class, such as {255: nucleus}."
            )
        self._page_names = format.names if by_page else ()
        self.values: MarkValues | StoredValues
        if by_page:
            self.values = MarkValues(self.name, present_values, ignored_values)
        else:
            self.values = pixel_values(format, values, ignored_values)

    def to_spec(self) -> dict[str, Any]:
        return {"name": self.name, **self.values.to_spec()}

    def stems(self, root: str | Path) -> list[str]:
        return list(find_files(root, TIFF_SUFFIXES))

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        path = find_path(root, stem, TIFF_SUFFIXES)
        layers = read_layers(path, most=max(1, len(self._page_names)))
        if self._page_names:
            self._check_pages(layers, path)
            return self.values.to_planes(layers.samples, str(path))
        if layers.samples.shape[2] != 1:
            raise ValueError(
                f"{path}: has {layers.samples.shape[2]} samples per pixel, expected one with the class values. "
                "Save colours as PNG for the codec `color_png`, or classes that overlap as format `multilabel`."
            )
        return self.values.to_planes(layers.samples[..., 0], str(path))

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([find_path(root, stem, TIFF_SUFFIXES)])

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        path = find_path(root, stem, TIFF_SUFFIXES)
        stored = self.values.to_disk(self.check(planes, str(path)), str(path))
        # (H, W) numbers are one layer, (H, W, P) marks are P of them.
        layers = np.moveaxis(stored.reshape(*planes.shape[:2], -1), -1, 0)
        write_layers(path, list(layers), self._page_names, read_georeference(like, planes.shape[:2]))

    @contextmanager
    def writing(
        self, root: str | Path, stem: str, size_hw: tuple[int, int], like: str | Path | None = None
    ) -> Iterator[PutPlanes]:
        """A BigTIFF of compressed tiles; see `Codec.writing`."""
        # Imported here: tifffile costs 0.1 s, and most masks are written whole.
        from segkit.formats.tiff_pieces import writing_tiles

        path, pages = find_path(root, stem, TIFF_SUFFIXES), max(1, len(self._page_names))
        georeference = read_georeference(like, size_hw)
        with writing_tiles(path, size_hw, pages, self.values.dtype, self._page_names, georeference) as put_samples:

            def put(rows: slice, columns: slice, planes: np.ndarray) -> None:
                stored = self.values.to_disk(self.check(planes, str(path)), str(path))
                put_samples(rows, columns, stored.reshape(*planes.shape[:2], -1))

            yield put

    def _check_pages(self, layers: TiffLayers, path: Path) -> None:
        count = layers.samples.shape[2]
        if count != len(self._page_names):
            raise ValueError(
                f"{path}: has {count} pages or samples per pixel, expected one for each of the classes "
                f"{list(self._page_names)}. If one number stands for several classes, say so in `values`, "
                "such as {1: [whole, core]}."
            )
        for number, (found, expected) in enumerate(zip(layers.names, self._page_names, strict=True), start=1):
            if found != expected and found in self._page_names:
                raise ValueError(
                    f"{path}: page {number} is named {found!r}, expected {expected!r}. "
                    f"List the classes in the order of the pages: {list(layers.names)}."
                )
