"""Binary masks in image files of any kind: bright is the class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.codec import Codec
from segkit.formats.disk_values import check_plane
from segkit.formats.files import existing, find_files, find_path
from segkit.formats.georeference import put_sidecar, read_georeference
from segkit.formats.image_files import PICTURE_SUFFIXES, TIFF_SUFFIXES, read_image_file
from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.formats.png_files import write_png
from segkit.formats.tiff_pages import write_layers

WRITTEN_SUFFIXES = (".png", *TIFF_SUFFIXES)


class Threshold(Codec):
    """One image file of any kind for each mask: where it is brighter than a threshold, the class is there.

    Kvasir-SEG has JPEGs, whose compression leaves grays around black and white; DRIVE has GIF files, STARE has PPM.
    A pixel is as bright as its brightest channel, so that a mark of any pure colour on black is seen; transparency
    is passed over. Masks are written without loss, as 255 and 0.

    Args:
        format: binary: one class and its background.
        threshold: in stored units; a pixel above it is the class. By default half of what the file can hold: 127.5
            for 8 bits, 32767.5 for 16.
        dark: the class is where the file is not above the threshold.
        suffix: of the files written: .png, .tif or .tiff.
    """

    name = "threshold"

    def __init__(
        self, format: MaskFormat, threshold: float | None = None, dark: bool = False, suffix: str = ".png"
    ) -> None:
        super().__init__(format)
        known = format.plane_values if format.num_planes == 1 else {}
        if len(known) != 2 or BACKGROUND not in known:
            raise ValueError(
                f"threshold: bright and dark tell one class from its background, but the classes are "
                f"{list(format.names)[:10]}. Use the codec `index_png` or `color_png`, `file_per_class` where classes "
                "overlap, or format `binary` with one class."
            )
        if threshold is not None and not _is_number(threshold):
            raise ValueError(f"threshold: threshold is {threshold!r}: expected a number from 0 on, in stored units.")
        if not isinstance(dark, bool):
            raise ValueError(f"threshold: dark is {dark!r}: expected true or false.")
        if suffix not in WRITTEN_SUFFIXES:
            raise ValueError(
                f"threshold: suffix is {suffix!r}: expected one of {', '.join(WRITTEN_SUFFIXES)}, which keep "
                "every pixel. Files of all kinds are read, whatever is written."
            )
        self.threshold, self.dark, self.suffix = threshold, dark, suffix
        class_value = next(value for name, value in known.items() if name != BACKGROUND)
        #                         not above the threshold, above it
        self._values = (class_value, known[BACKGROUND]) if dark else (known[BACKGROUND], class_value)

    def to_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"name": self.name}
        if self.threshold is not None:
            spec["threshold"] = self.threshold
        if self.dark:
            spec["dark"] = True
        return spec if self.suffix == ".png" else {**spec, "suffix": self.suffix}

    def stems(self, root: str | Path) -> list[str]:
        return list(find_files(root, PICTURE_SUFFIXES))

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        path = find_path(root, stem, PICTURE_SUFFIXES)
        image = read_image_file(path)
        if image.shape[2] not in (1, 3):
            raise ValueError(f"{path}: has {image.shape[2]} bands, expected gray or red, green and blue.")
        brightness = image.max(axis=2)
        above = brightness > (self._half(brightness, path) if self.threshold is None else self.threshold)
        return np.array(self._values, self.format.dtype)[above.view(np.uint8)][..., None]

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([find_path(root, stem, PICTURE_SUFFIXES)])

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        path = find_path(root, stem, (self.suffix, *PICTURE_SUFFIXES))
        if path.suffix.lower() != self.suffix:
            raise ValueError(
                f"{path}: is there already, and {stem}{self.suffix} beside it would be a second mask of that name. "
                "Move it away, write to another folder, or give another `suffix`."
            )
        plane = self.check(planes, str(path))[..., 0]
        way_out = "which is neither bright nor dark. Use the codec `index_png` with `ignored_values`."
        check_plane(plane, self._values, self.format.ignore_index, str(path), way_out)
        stored = (plane == self._values[1]) * np.uint8(255)
        georeference = read_georeference(like, planes.shape[:2])
        if self.suffix == ".png":
            put_sidecar(path, georeference)
            write_png(path, stored)
        else:
            write_layers(path, [stored], georeference=georeference)

    def _half(self, brightness: np.ndarray, path: Path) -> float:
        if brightness.dtype.kind == "f":
            raise ValueError(f"{path}: holds floats, of which half is nowhere: give `threshold`, such as 0.5.")
        if brightness.max() == 1:
            raise ValueError(
                f"{path}: holds 0 and 1 of {np.iinfo(brightness.dtype).max}: class numbers, which look all dark. "
                "Use the codec `index_png` (`tiff` for TIFF files), or give `threshold`, such as 0."
            )
        return np.iinfo(brightness.dtype).max / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
