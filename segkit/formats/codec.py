"""What a codec is: how the files of a folder hold planes.

A codec reads `(H, W, P)` planes from `(root, stem)` and writes them back. Disk values end and begin here:
above it, planes hold class indices or 0/1, and the largest value of the dtype where nobody knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segkit.formats.mask_format import BACKGROUND, MaskFormat

# What `segkit predict` puts beside the masks; a folder of predictions is itself a data set.
RESERVED_NAMES = ("_overlay", "_probabilities", "_journal.jsonl")


class Codec(ABC):
    """How files hold the planes of one `MaskFormat`.

    A stem is the name of a sample: the path below `root` without its suffix, with forward slashes. Slices of a
    volume are named `case@z017`.
    """

    name: ClassVar[str]

    def __init__(self, format: MaskFormat) -> None:
        self.format = format

    @abstractmethod
    def stems(self, root: str | Path) -> list[str]:
        """Sorted names of the samples below `root`."""

    @abstractmethod
    def read(self, root: str | Path, stem: str) -> np.ndarray:
        """(H, W, P) planes of `format.dtype`.

        Raises:
            ValueError: names the file and what is wrong with it: missing, not decodable, undeclared values.
        """

    @abstractmethod
    def files(self, root: str | Path, stem: str) -> list[Path]:
        """The files that `read` would open and that are there now: as long as they and `to_spec` stay, so do planes."""

    @abstractmethod
    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        """Write (H, W, P) planes so that `read` returns them; the file appears whole or not at all.

        Args:
            like: the input the planes belong to, for formats that copy its header (affine of a volume).
        """

    def finish(self, root: str | Path) -> None:  # noqa: B027 - most codecs have nothing to join
        """Join what many writers wrote, where a codec needs it. Atomic; may be repeated."""

    @abstractmethod
    def to_spec(self) -> dict[str, Any]:
        """JSON-ready description that `open_codec` takes: `{"name": ..., options that differ from defaults}`.

        The order of its values counts: do not sort the keys.
        """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codec):
            return NotImplemented
        # As text: of several values for one class the first is written, so their order counts.
        return (type(self), self.format, str(self.to_spec())) == (type(other), other.format, str(other.to_spec()))

    def __hash__(self) -> int:
        return hash((self.name, self.format))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_spec()})"

    def check(self, planes: np.ndarray, where: str) -> np.ndarray:
        """`planes` if their shape, dtype and values fit the format; `where` names them in the error."""
        expected = self.format.num_planes
        if planes.ndim != 3 or planes.shape[2] != expected or planes.dtype != self.format.dtype:
            raise ValueError(
                f"{where}: planes are {planes.dtype} of shape {planes.shape}, expected {self.format.dtype} "
                f"of shape (height, width, {expected})."
            )
        return planes


class PixelValues:
    """Two-way table between the values on disk and the values of one plane.

    Several disk values may name one class: the first is the one written. The same holds for ignored values.

    Args:
        format: must have one plane (`format.plane_values` refuses otherwise).
        values: disk value -> class name; None or `background` is the absence of a binary class.
            By default classes are stored as 0, 1, 2, ... in order, a binary mask as 0 and 1, and
            classes that are all named by numbers as those numbers.
        ignored_values: disk values that mean "do not look here".
        max_value: the largest value the file type can hold.
    """

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, str | None] | None = None,
        ignored_values: Iterable[int] = (),
        max_value: int = 65535,
    ) -> None:
        known = format.plane_values
        self.values = _default_values(known) if values is None else _named_values(values, known)
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
        missing = [name for name in known if name not in self.values.values()]
        if missing:
            raise ValueError(f"`values` gives no disk value for {missing}: add one line `VALUE: NAME` for each.")
        self._ignore_index = format.ignore_index
        # One entry for each value that 16 bits can hold, so that no stored value lies beyond the tables.
        self._to_plane = np.full(65536, self._ignore_index, dtype=format.dtype)
        self._to_disk: dict[int, int] = {}
        for value, name in self.values.items():
            self._to_plane[value] = known[name]
            self._to_disk.setdefault(known[name], value)
        if self.ignored_values:
            self._to_disk[self._ignore_index] = self.ignored_values[0]
        width = np.uint8 if max(self._to_disk.values()) <= 255 else np.uint16
        self._from_plane = np.zeros(int(np.iinfo(format.dtype).max) + 1, dtype=width)
        for plane_value, value in self._to_disk.items():
            self._from_plane[plane_value] = value

    def to_plane(self, stored: np.ndarray, where: str) -> np.ndarray:
        """(H, W) disk values to (H, W) plane values.

        Raises:
            ValueError: `where` holds values that nothing declares.
        """
        if stored.dtype == bool:
            stored = stored.view(np.uint8)
        if stored.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{where}: mask values are {stored.dtype}, expected uint8 or uint16.")
        strange = values_outside(stored, self.declared)
        if strange:
            shown = ", ".join(map(str, strange[:10])) + (", ..." if len(strange) > 10 else "")
            raise ValueError(
                f"{where}: found values [{shown}], which no class declares (declared: {self._declared_text()}). "
                "Add them to `values`, or to `ignored_values` to leave them out of training."
            )
        return look_up(self._to_plane, stored)

    def to_disk(self, plane: np.ndarray, where: str) -> np.ndarray:
        """(H, W) plane values to (H, W) disk values, uint8 where they all fit and else uint16."""
        strange = values_outside(plane, self._to_disk)
        if strange == [self._ignore_index]:
            raise ValueError(
                f"{where}: some pixels have no class (ignored, or *none* below the threshold), and no value on disk "
                "means that. Add one to `ignored_values`, such as [255]."
            )
        if strange:
            raise ValueError(f"{where}: plane values {strange} are no class of the format.")
        return look_up(self._from_plane, plane)

    def to_spec(self) -> dict[str, Any]:
        """The options `values` and `ignored_values` for `open_codec`."""
        spec: dict[str, Any] = {"values": dict(self.values)}
        return {**spec, "ignored_values": list(self.ignored_values)} if self.ignored_values else spec

    def _declared_text(self) -> str:
        pairs = [f"{v}: {name}" for v, name in list(self.values.items())[:40]]
        pairs += [f"{v}: ignored" for v in self.ignored_values[:5]]
        return ", ".join(pairs)


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


def values_outside(array: np.ndarray, known: Collection[int]) -> list[int]:
    """Sorted values of a uint8 or uint16 array that are not in `known`."""
    # Mostly they are 0, 1, 2, ... without a gap, and one look at the largest is enough.
    gap = next(value for value in range(len(known) + 1) if value not in known)
    if array.max(initial=0) < gap:
        return []
    if array.dtype == np.uint8:
        # bytes.translate runs at 1 ns a pixel, a seventh of what indexing a table takes.
        return sorted(set(array.tobytes().translate(None, bytes(v for v in known if v < 256))))
    strange = np.ones(65536, bool)
    strange[list(known)] = False
    return np.unique(array[strange[array]]).tolist()


def look_up(table: np.ndarray, array: np.ndarray) -> np.ndarray:
    """`table[array]` for a uint8 or uint16 array."""
    if array.dtype == table.dtype == np.uint8:
        content = bytearray(array.tobytes()).translate(table[:256].tobytes())
        return np.frombuffer(content, np.uint8).reshape(array.shape)
    return table[array]


def disk_values(values: Iterable[Any] | int) -> tuple[int, ...]:
    """Whole numbers from a list of them, or from one; each once, in order."""
    given = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    return tuple(dict.fromkeys(disk_value(v) for v in given))


def disk_value(value: Any) -> int:
    """A whole number, also from its text: keys of JSON objects are strings."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    raise ValueError(f"disk value {value!r}: expected a whole number from 0 on.")
