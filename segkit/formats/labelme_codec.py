"""Labelme JSON: one file per image, with polygons, rectangles, circles and masks by label."""

from __future__ import annotations

import base64
import binascii
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.files import check_stem, existing, find_files, path_of, write_whole
from segkit.formats.json_files import declared_size, read_json, records
from segkit.formats.marks import Mark, MarkCodec, paint, paint_nothing, split_marks
from segkit.formats.png_files import decode_png, encode_png
from segkit.formats.run_lengths import Region, circle_region, draw, mask_region, polygons_region, to_json

SUFFIX = ".json"
# Of the flags of an image: it was looked at, and what has no shape is not there.
ANNOTATED = "annotated"
# The layout of the files that are written, in which `mask` shapes are known.
_VERSION = "5.5.0"
_MAX_COORDINATE = 2**31


class LabelmeJson(MarkCodec):
    """Shapes of labels in `STEM.json`, as labelme writes it; the shapes of a class together are its region.

    Polygons, rectangles, circles and masks are read. Points and lines mark no pixels and are refused, unless their
    label stands for the absence of a class: then nobody looks at them. Written are masks.

    Args:
        values: label -> class name, see `ClassLabels`; by default classes are named as labels.
        ignored_values: labels that mean "do not look here".
        others: what a label stands for that is not named, see `ClassLabels`.
        missing: what a file without shapes says: `error`, nothing (`ignore`), or that no class is there (`empty`).
            Files that segkit wrote have the flag `annotated` and are taken at their word.
        overlap, unmarked: for exclusive classes, see `ClassRegions`. Labelme itself draws with `overlap: last`.
    """

    name = "labelme"

    def stems(self, root: str | Path) -> list[str]:
        return list(find_files(root, [SUFFIX]))

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        path = path_of(root, stem, SUFFIX)
        values = read_json(path)
        size_hw = declared_size(values.get("imageHeight"), values.get("imageWidth"), str(path))
        shapes = records(values, "shapes", str(path))
        flags = values.get("flags")
        if not shapes and not (isinstance(flags, dict) and flags.get(ANNOTATED) is True):
            return paint_nothing(self.regions, size_hw, self.missing, str(path))
        marks = [
            Mark(target, _region_of(shape, size_hw, f"{path}: shape number {number} ({shape['label']})"))
            for number, (shape, target) in enumerate(zip(shapes, self._targets(shapes, path), strict=True))
            if target is not None
        ]
        return paint(self.regions, size_hw, marks, str(path))

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([path_of(root, stem, SUFFIX)])

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        """Write one file.

        Args:
            like: the image, which labelme then finds from the file.
        """
        path = path_of(root, check_stem(stem), SUFFIX)
        height, width = self.check(planes, str(path)).shape[:2]
        marks = split_marks(self.regions, self.labels, planes, str(path), False, "Use the codec `file_per_class`")
        image = f"{Path(stem).name}.png" if like is None else Path(os.path.relpath(like, path.parent)).as_posix()
        values = {
            "version": _VERSION,
            "flags": {ANNOTATED: True},
            "shapes": [_shape_of(self.labels.written(mark.target), mark.region) for mark in marks],
            "imagePath": image,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_whole(path, json.dumps(values, indent=2).encode())

    def _targets(self, shapes: list[dict[str, Any]], path: Path) -> list[int | None]:
        targets: list[int | None] = []
        strange = []
        for shape in shapes:
            label = shape.get("label")
            if not isinstance(label, str):
                raise ValueError(f"{path}: has a shape with the label {label!r:.40}, expected a word.")
            try:
                targets.append(self.labels.target(label))
            except KeyError:
                strange.append(label)
        if strange:
            raise ValueError(f"{path}: {self.labels.strange_text(strange)}")
        return targets


def _region_of(shape: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> Region:
    kind = shape.get("shape_type", "polygon")  # early files hold nothing but polygons and do not say so
    try:
        if not isinstance(kind, str) or kind not in _DRAWN:
            raise ValueError(
                f"is a {kind!r:.40}, which marks no pixels as {', '.join(_DRAWN)} do (to pass it over, map its label "
                "to background in `values`)"
            )
        return _DRAWN[kind](shape, size_hw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}. Correct it, or leave the image out with `quarantine`.") from None


def _polygon(shape: Mapping[str, Any], size_hw: tuple[int, int]) -> Region:
    return polygons_region([[number for point in _points(shape) for number in point]], size_hw)


def _rectangle(shape: Mapping[str, Any], size_hw: tuple[int, int]) -> Region:
    (x0, y0), (x1, y1) = _points(shape, 2)
    return polygons_region([[x0, y0, x1, y0, x1, y1, x0, y1]], size_hw)


def _circle(shape: Mapping[str, Any], size_hw: tuple[int, int]) -> Region:
    center, rim = _points(shape, 2)
    return circle_region(center, rim, size_hw)


def _mask(shape: Mapping[str, Any], size_hw: tuple[int, int]) -> Region:
    (left, top), (right, bottom) = ((int(x), int(y)) for x, y in _points(shape, 2))
    size = bottom - top + 1, right - left + 1
    if not (0 <= left <= right < size_hw[1] and 0 <= top <= bottom < size_hw[0]):
        raise ValueError(f"has a `mask` in the rows {top} to {bottom} and columns {left} to {right}, beyond its image")
    try:
        content = base64.b64decode(shape.get("mask") or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("has a `mask` that is no base64 text") from None
    # Compared before it is decoded: a small file can declare more pixels than its image has.
    if content[12:24] != struct.pack(">4sII", b"IHDR", *reversed(size)):
        raise ValueError(f"has a `mask` that is no PNG of {size[0]} x {size[1]} pixels, as its points say")
    try:
        pixels = decode_png(content).pixels
    except ValueError as error:
        raise ValueError(f"has a `mask` whose PNG {str(error).split('.')[0]}") from None
    if pixels.ndim != 2:
        raise ValueError("has a `mask` with colours, expected one number per pixel")
    whole = np.zeros(size_hw, bool)
    whole[top : bottom + 1, left : right + 1] = pixels != 0
    return mask_region(whole)


_DRAWN = {"polygon": _polygon, "rectangle": _rectangle, "circle": _circle, "mask": _mask}


def _points(shape: Mapping[str, Any], count: int | None = None) -> list[list[float]]:
    """The points [x, y] of a shape, which must be `count` of them where that is given."""
    points: Any = shape.get("points")
    if not isinstance(points, list):
        raise ValueError("has no list of points [x, y]")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(isinstance(side, (int, float)) for side in point):
            raise ValueError(f"has {point!r:.40} for a point, expected [x, y]")
        if not all(abs(side) < _MAX_COORDINATE for side in point):  # NaN is not less than anything
            raise ValueError("has a point with NaN, infinite or huge coordinates")
    if count is not None and len(points) != count:
        raise ValueError(f"has {len(points)} points, expected {count}")
    return points


def _shape_of(label: str, region: Region) -> dict[str, Any]:
    left, top, width, height = to_json(region)["bbox"]
    pixels = draw([region])[top : top + height, left : left + width]
    return {
        "label": label,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(encode_png(pixels.view(np.uint8))).decode("ascii"),
    }
