"""One PNG file per class and mask: overlapping classes, each marked in a file of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.class_regions import MISSING, ClassRegions, one_of
from segkit.formats.codec import RESERVED_NAMES, Codec
from segkit.formats.files import check_stem, existing, path_of, walk
from segkit.formats.georeference import put_sidecar, read_georeference
from segkit.formats.mark_values import IGNORED, MarkValues
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import read_png, write_png

DEFAULT_PATTERN = "{class}/{stem}.png"


class FilePerClass(Codec):
    """A file per class, which holds 0 where the class is not and one other value where it is.

    Classes that exclude each other may lie this way too. A class named `background` then has no file: it is where
    no other class is marked. Without such a class, an unmarked pixel is an error (or ignored, see `unmarked`), and
    so are two marks on one pixel (unless `overlap` says which one counts).

    Args:
        pattern: where a class file lies below the root; names `{class}` and `{stem}` once each.
        present_values: disk values that mark the class, see `MarkValues`.
        ignored_values: disk values that mean "do not look here"; the first is written.
        missing: what an absent class file says: `error`, nothing known of that class (`ignore`), or that the
            class is not there (`empty`). At least one file of a sample must exist.
        overlap, unmarked: for exclusive classes, see `ClassRegions`; the last is the last of `classes`.
    """

    name = "file_per_class"
    marks_classes = True

    def __init__(
        self,
        format: MaskFormat,
        pattern: str = DEFAULT_PATTERN,
        present_values: Iterable[int] | None = None,
        ignored_values: Iterable[int] = (),
        missing: str = "error",
        overlap: str = "error",
        unmarked: str = "error",
    ) -> None:
        super().__init__(format)
        self.pattern = _check_pattern(pattern)
        self.missing = one_of(missing, MISSING, "missing")
        self.values = MarkValues(self.name, present_values, ignored_values)
        self.regions = ClassRegions(format, overlap, unmarked)
        self.filed_classes = self.regions.names
        for name in self.filed_classes:
            _check_class_name(name)

    def to_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"name": self.name}
        if self.pattern != DEFAULT_PATTERN:
            spec["pattern"] = self.pattern
        spec |= self.values.to_spec()
        if self.missing != "error":
            spec["missing"] = self.missing
        return {**spec, **self.regions.to_spec()}

    def stems(self, root: str | Path) -> list[str]:
        """Samples with a file for any class: one that lacks another class's file must be named, not dropped."""
        # Long names first: `a_left_lung.png` is `left_lung` of `a`, not `lung` of `a_left`.
        names = sorted(self.filed_classes, key=len, reverse=True)
        expressions = [_expression(self.pattern, name) for name in names]
        stems = set()
        for relative, _ in walk(root):
            match = next(filter(None, (e.fullmatch(relative) for e in expressions)), None)
            if match is not None:
                stems.add(match["stem"])
        return sorted(stems)

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        paths = [self._path(root, stem, name) for name in self.filed_classes]
        masks = [self._read_class(path) for path in paths]
        known = [(path, mask) for path, mask in zip(paths, masks, strict=True) if mask is not None]
        if not known:
            raise ValueError(f"{paths[0]}: no such file, nor one for another class of {stem!r}.")
        first, shape = known[0][0], known[0][1].shape
        for path, mask in known[1:]:
            if mask.shape != shape:
                raise ValueError(
                    f"{path}: is {mask.shape[0]} x {mask.shape[1]} (height x width), but {first} is "
                    f"{shape[0]} x {shape[1]}: all class files of a sample need one size."
                )
        absent = np.full(shape, 0 if self.missing == "empty" else IGNORED, np.uint8)
        marks = [absent if mask is None else mask for mask in masks]
        if self.format.classes_overlap:
            return np.stack(marks, axis=2)
        canvas = self.regions.canvas(shape)
        for number in self.regions.sorted_regions([int((mark == 1).sum()) for mark in marks]):
            index, mark = self.regions.classes[number], marks[number]
            canvas.mark(index, mark == 1, str(paths[number]))
            canvas.doubt(index, mark == IGNORED)
        return canvas.planes(str(paths[0]))

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing(self._path(root, stem, name) for name in self.filed_classes)

    def holds(self, root: str | Path, stem: str) -> bool:
        return len(self.files(root, stem)) == len(self.filed_classes)

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        paths = [self._path(root, stem, name) for name in self.filed_classes]
        where = str(paths[0])
        # Where no value means ignored, a pixel may be left unmarked instead.
        unmarked = 0 if self.regions.unmarked_is_ignored and not self.values.ignored_values else IGNORED
        contents = []
        for _, held, unknown in self.regions.split(self.check(planes, where), where):
            marks = held.astype(np.uint8)
            marks[unknown] = unmarked
            contents.append(self.values.to_disk(marks, where))
        georeference = read_georeference(like, planes.shape[:2])
        for path, stored in zip(paths, contents, strict=True):
            put_sidecar(path, georeference)
            write_png(path, stored)

    def _path(self, root: str | Path, stem: str, name: str) -> Path:
        relative = self.pattern.replace("{class}", name).replace("{stem}", check_stem(stem))
        return path_of(root, relative[: -len(".png")], relative[-len(".png") :])

    def _read_class(self, path: Path) -> np.ndarray | None:
        """(H, W) uint8 of 0, 1 and ignored, or None for an absent file."""
        if not path.exists():
            if self.missing == "error":
                raise ValueError(
                    f"{path}: no such file. Add it, or say what an absent class file means: `missing: empty` "
                    "(the class is not there) or `missing: ignore` (nothing is known)."
                )
            return None
        png = read_png(path)
        if png.pixels.ndim != 2 or png.pixels.dtype != np.uint8:
            raise ValueError(f"{path}: has colours or 16 bits, expected 8-bit gray: 0 and one value for the class.")
        return self.values.to_planes(png.pixels.view(bool) if png.bits == 1 else png.pixels, str(path))


def _check_pattern(pattern: str) -> str:
    text = str(pattern)
    plain = text.replace("{class}", "c").replace("{stem}", "s")
    once = text.count("{class}") == 1 and text.count("{stem}") == 1
    if not once or not text.lower().endswith(".png") or "{" in plain or "}" in plain:
        raise ValueError(
            f"file_per_class: pattern is {pattern!r}: expected a path that names {{class}} and {{stem}} once each "
            f"and ends in .png, such as {DEFAULT_PATTERN!r} or '{{stem}}_{{class}}.png'."
        )
    check_stem(plain)
    return text


def _expression(pattern: str, name: str) -> re.Pattern[str]:
    """What the class files of `name` match, with the stem as a group; the suffix in any case."""
    path = pattern[: -len(".png")].replace("{class}", name)
    before, after = (re.escape(part) for part in path.split("{stem}"))
    return re.compile(rf"{before}(?P<stem>.+){after}(?i:\.png)")


def _check_class_name(name: str) -> None:
    if any(c in name for c in "/\\\0{}") or name.startswith(".") or name in RESERVED_NAMES:
        raise ValueError(
            f"file_per_class: class {name!r} cannot be the name of a folder or file: give it a name without slashes, "
            "leading dots or other signs that paths use."
        )
