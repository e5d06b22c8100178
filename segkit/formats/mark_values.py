"""Marks of a class: 0 where it is not, another value where it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from segkit.formats.disk_values import disk_values, look_up, values_outside, whole_numbers

# What people write for "here": 255 is what a viewer shows white, 1 is what a program counts.
_DEFAULT_PRESENT = (255, 1)
# As in the planes of every format whose classes overlap.
IGNORED = 255


class MarkValues:
    """Two-way table between what a file stores for each class and 0/1 planes, where `IGNORED` is not known.

    Args:
        codec: name of the codec, for messages.
        present_values: disk values that mark the class, of which the first is written. By default 255 and 1 both
            do, but not in one file, where one of them is likely to mean something else.
        ignored_values: disk values that mean "do not look here"; the first is written.
    """

    dtype = np.dtype(np.uint8)  # of what is written

    def __init__(self, codec: str, present_values: Iterable[int] | None = None, ignored_values: Iterable[int] = ()):
        self.ignored_values = disk_values(ignored_values)
        self.both_at_once = present_values is not None
        self.present_values = (
            tuple(v for v in _DEFAULT_PRESENT if v not in self.ignored_values)
            if present_values is None
            else disk_values(present_values)
        )
        _check_values(codec, self.present_values, self.ignored_values)
        self._to_planes = np.zeros(65536, np.uint8)
        self._to_planes[list(self.present_values)] = 1
        self._to_planes[list(self.ignored_values)] = IGNORED
        self._to_disk = np.zeros(256, np.uint8)
        self._to_disk[1] = self.present_values[0]
        self._to_disk[IGNORED] = next(iter(self.ignored_values), 0)

    def to_planes(self, stored: np.ndarray, where: str) -> np.ndarray:
        """uint8 planes from whole numbers of any dtype, or from bool for samples of one bit.

        Raises:
            ValueError: `where` holds values that nothing declares, or both default values at once.
        """
        if stored.dtype == bool:
            # White in a file of one bit: whatever value marks the class.
            stored = stored * np.uint8(self.present_values[0])
        stored = whole_numbers(stored, where)
        marks = values_outside(stored, (0, *self.ignored_values))
        strange = [value for value in marks if value not in self.present_values]
        if strange:
            raise ValueError(
                f"{where}: found values {strange[:10]}, expected 0 and {' or '.join(map(str, self.present_values))}"
                f"{f', or {list(self.ignored_values)} for ignored' if self.ignored_values else ''}. "
                "Add them to `present_values`, or to `ignored_values` to leave them out of training."
            )
        if len(marks) > 1 and not self.both_at_once:
            raise ValueError(
                f"{where}: holds both {marks[0]} and {marks[1]}. Say what they mean: `present_values: {marks}` if both "
                f"mark the class, or put one of them into `ignored_values`."
            )
        return look_up(self._to_planes, stored)

    def to_disk(self, planes: np.ndarray, where: str) -> np.ndarray:
        """uint8 disk values of planes of any shape.

        Raises:
            ValueError: other values than 0, 1 and `IGNORED`, or ignored pixels that no disk value stands for.
        """
        strange = values_outside(planes, (0, 1, IGNORED))
        if strange:
            raise ValueError(f"{where}: plane values {strange}, expected 0, 1 or ignored ({IGNORED}).")
        if not self.ignored_values and (planes == IGNORED).any():
            raise ValueError(
                f"{where}: some pixels are ignored, and no value on disk means that. "
                "Add one to `ignored_values`, such as [128]."
            )
        return look_up(self._to_disk, planes)

    def to_spec(self) -> dict[str, Any]:
        """The options `present_values` and `ignored_values` that differ from their defaults."""
        spec: dict[str, Any] = {"present_values": list(self.present_values)} if self.both_at_once else {}
        return {**spec, "ignored_values": list(self.ignored_values)} if self.ignored_values else spec


def _check_values(codec: str, present: tuple[int, ...], ignored: tuple[int, ...]) -> None:
    if not present:
        raise ValueError(f"{codec}: no value is left to mark a class: give `present_values`, such as [255].")
    for value in (*present, *ignored):
        if not 0 <= value <= 255 or (value == 0 and value in present):
            raise ValueError(f"{codec}: disk value {value}: expected 1 to 255 (0 is where a class is not).")
    twice = sorted(set(present) & set(ignored))
    if twice or 0 in ignored:
        raise ValueError(
            f"{codec}: disk values {twice or [0]} are in `ignored_values` and mean something else too "
            "(0 is where a class is not): leave them out."
        )
