"""Training crops that are placed on chosen classes: on foreground, on rare ones, or on those that are named.

Small or rare things lie in few crops that are placed anywhere. nnU-Net (Isensee et al. 2021) places a third of its
crops on a pixel of a class that it draws among those of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np

from segkit.data.packed import PackedPlanes
from segkit.formats.class_places import class_marks, foreground, parse_members
from segkit.formats.mask_format import MaskFormat
from segkit.suggest import closest

FOREGROUND, RARE = "foreground", "rare"
# nnU-Net's share of crops that are placed on foreground.
_SHARE = 0.33
# The drawn pixel lies in the middle half of the crop: with things around it, and still inside after the rotations
# (25 degrees) and growth (1.25) of the presets: 0.25 * sqrt(2) * 1.25 < 0.5.
_MIDDLE = (0.25, 0.75)
# Pixels of a class of an image that `KeptPixels` remembers: 2 KiB.
_KEPT = 512
# From here on float32, in which OpenCV gives a histogram, leaves numbers out.
_EXACT = 2**24
# Draws of a focus are apart from those of the augmentation, which stay as they are without one.
_STREAM = 1


class ClassPixels(Protocol):
    """Tells where the classes of one image are."""

    def count(self, number: int) -> int:
        """How many pixels of class `number` can be asked for."""

    def pixel(self, number: int, k: int) -> tuple[int, int]:
        """(row, column) of pixel k of class `number`."""


@dataclass(frozen=True)
class Aim:
    """A pixel of the image that a crop is to hold.

    Attributes:
        pixel: (row, column).
        at: where in the crop it is to lie, as shares of its height and width.
    """

    pixel: tuple[int, int]
    at: tuple[float, float]

    def corner(
        self, window_hw: tuple[int, int], image_hw: tuple[int, int], inner_hw: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """(top, left) of a window.

        The window lies inside the image, or around it where it is larger, as that of `windows.place_window` does. With
        `inner_hw` that is so of a smaller window in its middle, which holds the pixel.
        """
        inner_hw = inner_hw or window_hw
        corner = []
        for pixel, at, window, inner, side in zip(self.pixel, self.at, window_hw, inner_hw, image_hw, strict=True):
            start = min(max(pixel - int(at * inner), min(0, side - inner)), max(0, side - inner))
            corner.append(start - (window - inner) // 2)
        return corner[0], corner[1]


@dataclass(frozen=True)
class Focus:
    """How often, and on what, crops are placed. Build one with `build_focus`.

    Attributes:
        share: of the crops, in (0, 1].
        members: numbers of the classes that are meant.
        marks: (plane, value) of every class of the format.
        weights: chance of each of `members`, against the others that the image holds; None where they are still to be
            counted, see `segkit.training.class_balance.focus_on_rare`.
    """

    share: float
    members: tuple[int, ...]
    marks: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] | None

    def aim(self, pixels: ClassPixels, seed: int) -> Aim | None:
        """What a crop is to hold, a function of the arguments alone; None: it lies anywhere.

        Args:
            seed: that of the augmentation of the sample.

        Raises:
            ValueError: the classes are to be weighted by rarity, and have not been counted.
        """
        if self.weights is None:
            raise ValueError(
                "focus is on rare classes, which nobody has counted: hand the data set to `fit`, or to "
                "`segkit.training.class_balance.focus_on_rare` first."
            )
        rng = np.random.default_rng([seed, _STREAM])
        if rng.random() >= self.share:
            return None
        # In this order, each comes first among any of them as often as its weight says (Efraimidis & Spirakis 2006). So
        # it is not asked of all classes whether they are there.
        for drawn in np.argsort(rng.exponential(size=len(self.members)) / self.weights):
            if count := pixels.count(self.members[drawn]):
                down, across = rng.uniform(*_MIDDLE, size=2)
                return Aim(pixels.pixel(self.members[drawn], int(rng.integers(count))), (down, across))
        return None

    def weighted(self, weights: Sequence[float]) -> Focus:
        """The same with (C,) weights of all classes."""
        return replace(self, weights=tuple(float(weights[number]) for number in self.members))


def build_focus(spec: float | Mapping[str, Any] | None, format: MaskFormat) -> Focus | None:
    """A focus from a config.

    Args:
        spec: share of the crops that are placed on foreground; or `share` and `classes`: `foreground`, `rare`, or
            names of classes, which are drawn alike.

    Raises:
        ValueError: a share that is none, an unknown key or class, or no telling what foreground is.
    """
    if spec is None:
        return None
    if not isinstance(spec, Mapping):
        spec = {"share": spec}
    for key in spec:
        if key not in ("share", "classes"):
            raise ValueError(f"focus has no key {key!r}. {closest(str(key), ['share', 'classes'])}")
    share, classes = spec.get("share", _SHARE), spec.get("classes", FOREGROUND)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"focus has share {share!r}: expected a number above 0, at most 1.")
    try:
        members = _members(classes, format)
    except ValueError as error:
        raise ValueError(f"focus: {error}") from None
    weights = None if classes == RARE else (1.0,) * len(members)
    return Focus(float(share), tuple(members), tuple(class_marks(format)), weights)


def find_aim(focus: Focus | None, planes: np.ndarray | PackedPlanes, seed: int) -> Aim | None:
    """What the crop of a sample with these (H, W, P) planes is to hold; None: it lies anywhere."""
    return None if focus is None else focus.aim(PlanePixels(planes, focus.marks), seed)


class PlanePixels:
    """`ClassPixels` of the planes of a sample, packed or not; whole planes are never unpacked."""

    def __init__(self, planes: np.ndarray | PackedPlanes, marks: Sequence[tuple[int, int]]) -> None:
        self._planes, self._marks = planes, marks
        self._seen: tuple[int, np.ndarray] | None = None

    def count(self, number: int) -> int:
        """See `ClassPixels`."""
        count = _EXACT if self._values is None else int(self._values[self._marks[number][1]])
        return count if count < _EXACT else int(self._rows(number).sum())

    def pixel(self, number: int, k: int) -> tuple[int, int]:
        """See `ClassPixels`."""
        ends = np.cumsum(self._rows(number))
        row = int(np.searchsorted(ends, k, side="right"))
        before = int(ends[row - 1]) if row else 0
        return row, int(np.flatnonzero(self._map(number)[row])[k - before])

    def some(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 2) int32 rows and columns of at most 512 pixels of a class, drawn evenly."""
        where = np.flatnonzero(self._map(number))
        if len(where) > _KEPT:
            where = rng.choice(where, _KEPT, replace=False)
        return np.stack(np.divmod(where, self._planes.shape[1]), axis=1).astype(np.int32)

    @cached_property
    def _values(self) -> np.ndarray | None:
        """How many pixels have each value of an only plane: of many classes in it, few are there."""
        if isinstance(self._planes, PackedPlanes) or self._planes.shape[2] > 1:
            return None
        values = int(np.iinfo(self._planes.dtype).max) + 1
        # np.bincount would turn every pixel into an int64 first, which takes ten times as long.
        return cv2.calcHist([np.ascontiguousarray(self._planes[..., 0])], [0], None, [values], [0, values]).reshape(-1)

    def _map(self, number: int) -> np.ndarray:
        """(H, W) uint8 of 0 and 1: where a class is. That of one class is remembered."""
        if self._seen is None or self._seen[0] != number:
            plane, value = self._marks[number]
            if isinstance(self._planes, PackedPlanes):
                here = self._planes.bits[..., plane // 8] & (1 << plane % 8) != 0
            else:
                here = self._planes[..., plane] == value
            self._seen = number, np.ascontiguousarray(here).view(np.uint8)
        return self._seen[1]

    def _rows(self, number: int) -> np.ndarray:
        """(H,) int32 pixels of a class in each row."""
        return cv2.reduce(self._map(number), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).reshape(-1)


class KeptPixels:
    """`ClassPixels` that remember some pixels of each class, where the planes are not at hand any more.

    Args:
        seed: of what is remembered.
    """

    def __init__(self, planes: np.ndarray | PackedPlanes, focus: Focus, seed: Sequence[int]) -> None:
        found, rng = PlanePixels(planes, focus.marks), np.random.default_rng(seed)
        self._pixels = {number: found.some(number, rng) for number in focus.members}

    def count(self, number: int) -> int:
        """See `ClassPixels`."""
        return len(self._pixels[number])

    def pixel(self, number: int, k: int) -> tuple[int, int]:
        """See `ClassPixels`."""
        row, column = self._pixels[number][k].tolist()
        return row, column


def _members(classes: Any, format: MaskFormat) -> list[int]:
    if classes == FOREGROUND:
        return foreground(format)
    if isinstance(classes, str) and classes != RARE:
        raise ValueError(f"classes is {classes!r}: expected {FOREGROUND}, {RARE} or a list of class names.")
    return parse_members(None if classes == RARE else classes, format)
