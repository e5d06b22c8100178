"""One stored number per pixel: what it says about planes, and which number says it.

| table | a stored number says | planes |
|---|---|---|
| `PixelValues`, `{0: sky, 7: road}` | which one class holds | 1 |
| `RegionValues`, `{0: [], 1: [whole, core], 2: [whole]}` | which classes hold together | one per class |

Codecs take either from `pixel_values` and do not ask which one they have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from operator import and_, or_
from typing import Any

import numpy as np

from segkit.formats.disk_values import (
    NO_IGNORED_VALUE,
    check_plane,
    disk_value,
    disk_values,
    ignored_error,
    look_up,
    pack_bits,
    unknown_pixels,
    values_outside,
    whole_numbers,
    width,
)
from segkit.formats.mask_format import BACKGROUND, MaskFormat

# Sets of classes are counted as whole numbers of 64 bits.
_MAX_REGIONS = 64


def pixel_values(
    format: MaskFormat,
    values: Mapping[int, Any] | None = None,
    ignored_values: Iterable[int] = (),
    max_value: int = 65535,
) -> StoredValues:
    """The table for masks of `format`: one of regions if `values` lists classes, or if `format` has several planes.

    Raises:
        ValueError: a table that cannot be meant, or a format that one number per pixel cannot hold.
    """
    lists = isinstance(values, Mapping) and any(isinstance(names, (list, tuple)) for names in values.values())
    if values is not None and (lists or format.num_planes > 1):
        return RegionValues(format, values, ignored_values, max_value)
    return PixelValues(format, values, ignored_values, max_value)


class StoredValues(ABC):
    """Two-way table between one stored number per pixel and planes.

    Attributes:
        values: disk value -> what it says, in the order given.
        ignored_values: disk values that mean "do not look here"; the first is written.
        declared: all disk values with a meaning.
        dtype: of what is written: uint8 where all values fit, else uint16.
        unwritten: plane value of pixels that nobody wrote (ignored, else no class), None if no number says so.
    """

    dtype: np.dtype
    unwritten: int | None

    def __init__(
        self, format: MaskFormat, values: Mapping[int, Any], ignored_values: Iterable[int], max_value: int
    ) -> None:
        self.values = values
        self.ignored_values = disk_values(ignored_values)
        self.declared = frozenset((*self.values, *self.ignored_values))
        for value in sorted(self.declared):
            if not 0 <= value <= max_value:
                raise ValueError(f"disk value {value}: this codec holds values from 0 to {max_value}.")
        twice = sorted(set(self.values) & set(self.ignored_values))
        if twice:
            raise ValueError(
                f"disk values {twice} stand for a class and are in `ignored_values` too: "
                "leave them out of one, or give `values` to say which value is which class."
            )
        self._ignore_index = format.ignore_index
        # One entry for each value that 16 bits can hold, so that no stored value lies beyond the tables.
        self._tables = np.full((format.num_planes, 65536), self._ignore_index, dtype=format.dtype)

    def to_planes(self, stored: np.ndarray, where: str) -> np.ndarray:
        """(..., P) planes of disk values, which are whole numbers of any dtype, or bool for samples of one bit.

        Raises:
            ValueError: `where` holds values that nothing declares.
        """
        stored = self._as_declared(stored, where)
        self._check_declared(stored, where)
        if len(self._tables) == 1:
            return look_up(self._tables[0], stored)[..., None]
        return np.stack([look_up(table, stored) for table in self._tables], axis=-1)

    @abstractmethod
    def to_disk(self, planes: np.ndarray, where: str) -> np.ndarray:
        """Disk values of `dtype` for (..., P) planes.

        Raises:
            ValueError: some pixel of `where` says what no disk value means.
        """

    @abstractmethod
    def shown(self) -> dict[int, str]:
        """Disk value -> the class in whose colour pictures show it."""

    @abstractmethod
    def to_spec(self) -> dict[str, Any]:
        """The options of a codec that make this table again."""

    def _as_declared(self, stored: np.ndarray, where: str) -> np.ndarray:
        """uint8 or uint16 disk values."""
        if stored.dtype != bool:
            return whole_numbers(stored, where)
        # Viewers show 1 of 1 bit as white, which a codec may know as 255.
        white = 255 if 255 in self.declared and 1 not in self.declared else 1
        return stored * np.uint8(white)

    def _check_declared(self, stored: np.ndarray, where: str) -> None:
        strange = values_outside(stored, self.declared)
        if strange:
            shown = ", ".join(map(str, strange[:10])) + (", ..." if len(strange) > 10 else "")
            raise ValueError(
                f"{where}: found values [{shown}], which no class declares (declared: {self._declared_text()}). "
                "Add them to `values`, or to `ignored_values` to leave them out of training."
            )

    def _declared_text(self) -> str:
        pairs = [f"{value}: {_text(says)}" for value, says in list(self.values.items())[:40]]
        pairs += [f"{value}: ignored" for value in self.ignored_values[:5]]
        return ", ".join(pairs)


class PixelValues(StoredValues):
    """One class for each disk value.

    Several disk values may name one class: the first is the one written. The same holds for ignored values.

    Args:
        format: must have one plane (`format.plane_values` refuses otherwise).
        values: disk value -> class name; None or `background` is the absence of a binary class.
            By default classes are stored as 0, 1, 2, ... in order, a binary mask as 0 and 1, and
            classes that are all named by numbers as those numbers.
        ignored_values: disk values that mean "do not look here".
        max_value: the largest value the file type can hold.
    """

    values: dict[int, str]

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, str | None] | None = None,
        ignored_values: Iterable[int] = (),
        max_value: int = 65535,
    ) -> None:
        known = format.plane_values
        named = _default_values(known) if values is None else _named_values(values, known)
        super().__init__(format, named, ignored_values, max_value)
        there = set(named.values())
        missing = [name for name in known if name not in there]
        if missing:
            raise ValueError(f"`values` gives no disk value for {missing}: add one line `VALUE: NAME` for each.")
        self._to_disk: dict[int, int] = {}
        for value, name in named.items():
            self._tables[0, value] = known[name]
            self._to_disk.setdefault(known[name], value)
        if self.ignored_values:
            self._to_disk[self._ignore_index] = self.ignored_values[0]
        self.dtype = width(self._to_disk.values())
        self.unwritten = self._ignore_index if self.ignored_values else known.get(BACKGROUND)
        self._from_plane = np.zeros(int(np.iinfo(format.dtype).max) + 1, dtype=self.dtype)
        for plane_value, value in self._to_disk.items():
            self._from_plane[plane_value] = value

    def to_disk(self, planes: np.ndarray, where: str) -> np.ndarray:
        plane = planes[..., 0]
        check_plane(plane, self._to_disk, self._ignore_index, where, NO_IGNORED_VALUE)
        return look_up(self._from_plane, plane)

    def shown(self) -> dict[int, str]:
        return dict(self.values)

    def to_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"values": dict(self.values)}
        return {**spec, "ignored_values": list(self.ignored_values)} if self.ignored_values else spec


class RegionValues(StoredValues):
    """A set of classes that hold together for each disk value: BraTS, and the region-based labels of nnU-Net.

    In a set that no value stands for, each class brings along those that lie around it: if every declared set with
    `core` also has `whole`, `core` alone is written as `core` and `whole`. So a prediction of the inner class without
    the outer one becomes both, as when nnU-Net writes its regions one over the other; nothing else is ever added.

    Args:
        format: its classes may overlap.
        values: disk value -> the classes that hold there: a list, one name, or None for none of them. 0 is none of
            them unless it is taken. Several values may stand for one set: the first is written.
        ignored_values: disk values that mean "nothing is known of any class".
        max_value: the largest value the file type can hold.
    """

    values: dict[int, tuple[str, ...]]

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, Any],
        ignored_values: Iterable[int] = (),
        max_value: int = 65535,
    ) -> None:
        if not format.classes_overlap:
            raise ValueError(
                f"`values` lists several classes for a value, but the classes {list(format.names)[:10]} exclude each "
                "other: name one class for each value, or use format `multilabel` if they may hold together."
            )
        if format.num_planes > _MAX_REGIONS:
            raise ValueError(
                f"`values` lists classes for each value, but {format.num_planes} classes are more than the "
                f"{_MAX_REGIONS} that this holds. Use the codec `file_per_class`."
            )
        sets = _named_sets(values, format.names)
        super().__init__(format, sets, ignored_values, max_value)
        self._names = format.names
        self._written: dict[int, int] = {}
        for value, names in sets.items():
            members = [name in names for name in self._names]
            self._tables[:, value] = members
            self._written.setdefault(_bits_of(members), value)
        missing = [name for name in self._names if not any(name in names for names in sets.values())]
        if missing:
            raise ValueError(f"`values` gives no disk value for {missing}: add a line `VALUE: [NAME, ...]` with each.")
        if 0 not in self._written:
            raise ValueError("`values` gives no disk value for pixels without a class: add a line `VALUE: []`.")
        # For each class those that hold in every set with it, itself included.
        self._around = [reduce(and_, (s for s in self._written if s >> k & 1)) for k in range(format.num_planes)]
        self.dtype = width((*self._written.values(), *self.ignored_values[:1]))
        self.unwritten = self._ignore_index if self.ignored_values else 0

    def to_disk(self, planes: np.ndarray, where: str) -> np.ndarray:
        unknown = unknown_pixels(planes, where, self._ignore_index)
        if unknown.any() and not self.ignored_values:
            raise ignored_error(where, NO_IGNORED_VALUE)
        found, pixels = np.unique(pack_bits(planes == 1), return_inverse=True)
        written = [self._value_for(int(bits)) for bits in found]
        lacking = [number for number, value in enumerate(written) if value is None]
        if lacking:
            counts = np.bincount(pixels.ravel(), minlength=len(found))
            first = max(lacking, key=lambda number: counts[number])
            names = [name for k, name in enumerate(self._names) if int(found[first]) >> k & 1]
            raise ValueError(
                f"{where}: {counts[first]} pixels say that {' and '.join(names)} hold together, which no value stands "
                f"for (declared: {self._declared_text()}). Add a line `VALUE: [{', '.join(names)}]` to `values`, or "
                "use the codec `bit_planes` or `file_per_class`, which hold any combination."
            )
        stored = np.array(written, self.dtype)[pixels].reshape(unknown.shape)
        if self.ignored_values:
            stored[unknown] = self.ignored_values[0]
        return stored

    def shown(self) -> dict[int, str]:
        """The innermost class of each set: the one in the fewest sets, of several the last."""
        sets_with = Counter(name for names in set(self.values.values()) for name in names)
        return {
            value: min(reversed(names), key=lambda name: sets_with[name]) if names else BACKGROUND
            for value, names in self.values.items()
        }

    def to_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"values": {value: list(names) for value, names in self.values.items()}}
        return {**spec, "ignored_values": list(self.ignored_values)} if self.ignored_values else spec

    def _value_for(self, bits: int) -> int | None:
        """Disk value of a set of classes, or of these and the classes that lie around each; None if there is none."""
        if bits in self._written:
            return self._written[bits]
        return self._written.get(reduce(or_, (around for k, around in enumerate(self._around) if bits >> k & 1)))


def _default_values(known: Mapping[str, int]) -> dict[int, str]:
    if all(name.isdecimal() for name in known):
        return {int(name): name for name in known}
    return {value: name for name, value in known.items()}


def _named_values(values: Mapping[Any, Any], known: Mapping[str, int]) -> dict[int, str]:
    if not isinstance(values, Mapping):
        raise ValueError(f"`values` is {values!r}: expected lines `VALUE: NAME`, such as {{255: nucleus}}.")
    named: dict[int, str] = {}
    for value, name in values.items():
        name = BACKGROUND if name is None else str(name)
        if name not in known:
            raise ValueError(f"`values` maps {value} to {name!r}, which is no class (classes: {list(known)}).")
        number = disk_value(value)
        if named.setdefault(number, name) != name:
            raise ValueError(f"`values` maps {number} to both {named[number]!r} and {name!r}: keep one of them.")
    # A binary mask whose `values` only name the class: 0 is what is left, unless it is taken.
    if BACKGROUND in known and BACKGROUND not in named.values() and 0 not in named:
        named[0] = BACKGROUND
    return named


def _named_sets(values: Mapping[Any, Any], known: Collection[str]) -> dict[int, tuple[str, ...]]:
    if not isinstance(values, Mapping):
        raise ValueError(f"`values` is {values!r}: expected lines `VALUE: [NAME, ...]`, such as {{1: [whole, core]}}.")
    named: dict[int, tuple[str, ...]] = {}
    for value, given in values.items():
        listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        names = [str(name) for name in listed]
        strange = [name for name in names if name not in known]
        if strange:
            raise ValueError(f"`values` maps {value} to {strange}, which are no classes (classes: {list(known)}).")
        # In the order of the classes: a set has none of its own.
        members = tuple(name for name in known if name in names)
        if named.setdefault(disk_value(value), members) != members:
            raise ValueError(f"`values` maps {value} to both {named[disk_value(value)]} and {members}: keep one.")
    if () not in named.values() and 0 not in named:
        named[0] = ()
    return named


def _bits_of(members: Iterable[bool]) -> int:
    return sum(1 << k for k, member in enumerate(members) if member)


def _text(says: str | tuple[str, ...]) -> str:
    return says if isinstance(says, str) else f"[{', '.join(says)}]"
