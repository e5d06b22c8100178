"""Numbers as files store them: looked up, packed, checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np


def pack_bits(marks: np.ndarray) -> np.ndarray:
    """One unsigned number for each pixel of (..., P) bool marks, whose bit k is mark k; P is at most 64."""
    dtype = next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if marks.shape[-1] <= 8 * size)
    packed = np.zeros(marks.shape[:-1], dtype)
    for k in range(marks.shape[-1]):
        packed |= marks[..., k].astype(dtype) << dtype.type(k)
    return packed


def unknown_pixels(planes: np.ndarray, where: str, ignore_index: int) -> np.ndarray:
    """(...) bool, True where every one of (..., P) 0/1 planes is ignored.

    Raises:
        ValueError: a pixel is ignored in some planes only, which one number cannot say, or holds another value.
    """
    strange = values_outside(planes, (0, 1, ignore_index))
    if strange:
        raise ValueError(f"{where}: plane values {strange}, expected 0, 1 or ignored ({ignore_index}).")
    ignored = planes == ignore_index
    unknown = ignored.all(-1)
    partly = int((ignored.any(-1) & ~unknown).sum())
    if partly:
        raise ValueError(
            f"{where}: {partly} pixels are ignored in some classes only, and one number per pixel says ignored for "
            "all of them. Use the codec `file_per_class` or `tiff` without `values`, where each class has its own."
        )
    return unknown


def check_plane(plane: np.ndarray, known: Collection[int], ignore_index: int, where: str, way_out: str) -> None:
    """Refuse (H, W) plane values that a file cannot hold.

    Args:
        known: values that it can.
        way_out: what to do about ignored pixels, after the words "some pixels have no class (...), ".

    Raises:
        ValueError: `where` holds ignored pixels, or values that are no class.
    """
    strange = values_outside(plane, known)
    if strange == [ignore_index]:
        raise ignored_error(where, way_out)
    if strange:
        raise ValueError(f"{where}: plane values {strange} are no class of the format.")


# What `ignored_error` says where disk values stand for classes.
NO_IGNORED_VALUE = "and no value on disk means that. Add one to `ignored_values`, such as [255]."


def ignored_error(where: str, way_out: str) -> ValueError:
    """Says that `where` has ignored pixels, which nothing in the file can say."""
    return ValueError(f"{where}: some pixels have no class (ignored, or *none* below the threshold), {way_out}")


def whole_numbers(stored: np.ndarray, where: str) -> np.ndarray:
    """uint8 or uint16 numbers of the same values.

    Raises:
        ValueError: no numbers, fractions, or numbers below 0 or above 65535.
    """
    if stored.dtype in (np.uint8, np.uint16):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.kind not in "iuf":
        raise ValueError(f"{where}: values are {stored.dtype}, expected whole numbers.")
    if stored.dtype.kind == "f" and not (stored == np.rint(stored)).all():
        strange = stored[~(stored == np.rint(stored))].ravel()[:5].tolist()
        raise ValueError(f"{where}: found values {strange}, expected whole numbers. Is this an image, not labels?")
    if stored.min() < 0 or stored.max() > 65535:
        raise ValueError(
            f"{where}: found values from {stored.min()} to {stored.max()}, expected labels from 0 to 65535. "
            "Renumber the labels."
        )
    return stored.astype(np.uint16)


def width(values: Iterable[int]) -> np.dtype:
    """uint8 if all values fit, else uint16."""
    return np.dtype(np.uint8 if max(values) <= 255 else np.uint16)


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
