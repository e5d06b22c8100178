"""Overlapping classes as the bits of one number per pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segkit.formats.disk_values import (
    NO_IGNORED_VALUE,
    disk_value,
    ignored_error,
    pack_bits,
    unknown_pixels,
    whole_numbers,
    width,
)
from segkit.formats.mask_format import MaskFormat
from segkit.formats.pixel_values import StoredValues
from segkit.formats.png_codecs import NumberPng

_MAX_BITS = 16


class BitPlanes(NumberPng):
    """Gray PNG whose samples are whole numbers: bit k of a sample says whether a class is there.

    Up to 16 classes; files have 8 bits per sample where those suffice, and are read with 1 to 16.

    Args:
        format: its classes may overlap.
        bits: number of the bit -> class name; by default the first class has bit 0, the next bit 1, and so on.
        ignored_values: numbers that mean "nothing is known of any class", the first is written: such as 255 for up
            to seven classes. A number that says which classes are there cannot be one of them.
    """

    name = "bit_planes"

    def __init__(
        self, format: MaskFormat, bits: Mapping[int, str] | None = None, ignored_values: Iterable[int] = ()
    ) -> None:
        super().__init__(format, BitValues(format, bits, ignored_values))


class BitValues(StoredValues):
    """A class for each bit of a disk value; see `BitPlanes` for the arguments."""

    def __init__(
        self, format: MaskFormat, bits: Mapping[int, str] | None = None, ignored_values: Iterable[int] = ()
    ) -> None:
        if not format.classes_overlap:
            raise ValueError(
                f"bit_planes: the classes {list(format.names)[:10]} exclude each other, and bits would let several "
                "hold at a pixel. Use the codec `index_png`, or format `multilabel` if the classes may overlap."
            )
        if format.num_planes > _MAX_BITS:
            raise ValueError(
                f"bit_planes: a PNG has {_MAX_BITS} bits per pixel, too few for {format.num_planes} classes. "
                "Use the codec `file_per_class`, or `tiff` with a page for each class."
            )
        self._names = format.names
        self._bit_of = _named_bits(dict(enumerate(format.names)) if bits is None else bits, format.names)
        self._mask = sum(1 << bit for bit in self._bit_of.values())
        super().__init__(format, {1 << bit: n for n, bit in self._bit_of.items()}, ignored_values, 2**_MAX_BITS - 1)
        for value in self.ignored_values:
            if value & ~self._mask == 0:
                raise ValueError(
                    f"bit_planes: {value} is in `ignored_values`, but says already that {self._text(value)}. "
                    + self._way_out()
                )
        for table, name in zip(self._tables, self._names, strict=True):
            table[:] = np.arange(2**16) >> self._bit_of[name] & 1
        self._tables[:, list(self.ignored_values)] = self._ignore_index
        self.dtype = width((self._mask, *self.ignored_values[:1]))
        self.unwritten = self._ignore_index if self.ignored_values else 0

    def to_disk(self, planes: np.ndarray, where: str) -> np.ndarray:
        unknown = unknown_pixels(planes, where, self._ignore_index)
        if unknown.any() and not self.ignored_values:
            raise ignored_error(where, NO_IGNORED_VALUE)
        # Planes in the order of the bits, and none where a bit has no class.
        marks = np.zeros((*planes.shape[:-1], max(self._bit_of.values()) + 1), bool)
        for k, name in enumerate(self._names):
            marks[..., self._bit_of[name]] = planes[..., k] == 1
        stored = pack_bits(marks).astype(self.dtype)
        if self.ignored_values:
            stored[unknown] = self.ignored_values[0]
        return stored

    def shown(self) -> dict[int, str]:
        return dict(self.values)

    def to_spec(self) -> dict[str, Any]:
        in_order = list(self._bit_of.values()) == list(range(len(self._names)))
        spec: dict[str, Any] = {} if in_order else {"bits": {bit: name for name, bit in self._bit_of.items()}}
        return {**spec, "ignored_values": list(self.ignored_values)} if self.ignored_values else spec

    def _as_declared(self, stored: np.ndarray, where: str) -> np.ndarray:
        # White in a file of one bit is bit 0, whatever viewers show.
        return whole_numbers(stored.view(np.uint8) if stored.dtype == bool else stored, where)

    def _check_declared(self, stored: np.ndarray, where: str) -> None:
        known = ~np.isin(stored, self.ignored_values) if self.ignored_values else ...
        strange = int(np.bitwise_or.reduce(stored[known], axis=None)) & ~self._mask
        if strange:
            bits = [bit for bit in range(_MAX_BITS) if strange >> bit & 1]
            raise ValueError(
                f"{where}: found bits {bits} set, which no class declares (declared: {self._declared_text()}). "
                "Add them to `bits`, or the whole numbers to `ignored_values` to leave them out of training."
            )

    def _declared_text(self) -> str:
        pairs = [f"{bit}: {name}" for name, bit in self._bit_of.items()]
        return ", ".join((*pairs, *(f"number {value}: ignored" for value in self.ignored_values[:5])))

    def _text(self, value: int) -> str:
        holding = [name for name, bit in self._bit_of.items() if value >> bit & 1]
        return f"{' and '.join(holding)} hold there" if holding else "no class is there"

    def _way_out(self) -> str:
        free = next((bit for bit in range(_MAX_BITS) if not self._mask >> bit & 1), None)
        if free is None:
            return "Every number has a meaning: use the codec `file_per_class`, which has a value for ignored pixels."
        return f"Take a number with a bit that no class has, such as {255 if free < 8 else 1 << free}."


def _named_bits(bits: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, int]:
    """Class name -> bit, in the order of the classes."""
    if not isinstance(bits, Mapping):
        raise ValueError(f"bit_planes: `bits` is {bits!r}: expected lines `BIT: NAME`, such as {{0: whole, 1: core}}.")
    bit_of: dict[str, int] = {}
    for given, name in bits.items():
        bit = disk_value(given)
        if str(name) not in names:
            raise ValueError(f"bit_planes: `bits` maps {bit} to {name!r}, which is no class (classes: {list(names)}).")
        if not 0 <= bit < _MAX_BITS:
            raise ValueError(f"bit_planes: bit {bit}: a PNG has the bits 0 to {_MAX_BITS - 1}.")
        if str(name) in bit_of or bit in bit_of.values():
            raise ValueError(
                f"bit_planes: `bits` names bit {bit} or class {str(name)!r} twice: give every class a bit of its own."
            )
        bit_of[str(name)] = bit
    missing = [name for name in names if name not in bit_of]
    if missing:
        raise ValueError(f"bit_planes: `bits` gives no bit for {missing}: add one line `BIT: NAME` for each.")
    return {name: bit_of[name] for name in names}
