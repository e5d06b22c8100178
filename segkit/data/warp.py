"""One geometric change of an image and its planes: a window, grown or shrunk, flipped, turned and rotated, at once.

Pixel centres of image and planes stay together to within OpenCV's rounding (1/32 of a pixel). Without a rotation
nothing is interpolated that does not change its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from segkit.data.packed import PackedPlanes, are_bits, pack_planes
from segkit.data.windows import cut_image, cut_planes

# OpenCV 5 has exact code for these numbers of bands; for others it rounds coordinates to 1/1024 of a pixel, so that
# packed and unpacked planes would differ in a few pixels of ten thousand, and takes twice the time.
_BANDS_AT_ONCE = (4, 3, 1)
_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class Move:
    """Where each pixel of a result comes from.

    The steps are, in order: the window is cut and becomes `size_hw`, is flipped, turned, then scaled and rotated
    about its centre.

    Attributes:
        corner: (top, left) of the window in the image; may lie beyond its border.
        window_hw: size of the window.
        size_hw: size of the result; equal sides where `quarters` is odd.
        flip_x, flip_y: left and right, or top and bottom, change places.
        quarters: turns by 90 degrees, counter-clockwise.
        angle_deg: rotation, clockwise as one looks at the picture.
        scale_xy: growth of width and of height.
    """

    corner: tuple[int, int]
    window_hw: tuple[int, int]
    size_hw: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    quarters: int = 0
    angle_deg: float = 0.0
    scale_xy: tuple[float, float] = (1.0, 1.0)

    @property
    def is_straight(self) -> bool:
        """Whether rows and columns of the window are rows and columns of the result, or the other way round."""
        return self.angle_deg == 0 and self.scale_xy == (1.0, 1.0)

    def to_source(self) -> np.ndarray:
        """(2, 3) matrix from (x, y, 1) of a pixel of the result to (x, y) in the image; integers are pixel centres."""
        # The steps backwards, in plain numbers: numpy takes a tenth of a millisecond for five products of 2 x 2.
        angle = math.radians(self.angle_deg)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = (cos / self.scale_xy[0], sin / self.scale_xy[0]), (-sin / self.scale_xy[1], cos / self.scale_xy[1])
        for _ in range(self.quarters):
            x, y = (-y[0], -y[1]), x
        (height, width), (window_h, window_w), (top, left) = self.size_hw, self.window_hw, self.corner
        across = window_w / width * (-1 if self.flip_x else 1)
        down = window_h / height * (-1 if self.flip_y else 1)
        rows = []
        # A pixel covers its centre +- 1/2, so the middle of n pixels lies at (n - 1) / 2.
        for (a, b), factor, middle in ((x, across, left + (window_w - 1) / 2), (y, down, top + (window_h - 1) / 2)):
            a, b = a * factor, b * factor
            rows.append((a, b, middle - a * (width - 1) / 2 - b * (height - 1) / 2))
        return np.array(rows)


def move_image(image: np.ndarray, move: Move) -> np.ndarray:
    """(h, w, B) result of the same dtype: linear between pixels, mirrored at the border. Never a view of `image`."""
    if move.is_straight:
        window = cut_image(image, move.corner, move.window_hw)
        return _straight(window, move, cv2.INTER_LINEAR)
    return _warp(image, move, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101)


def move_planes(planes: np.ndarray | PackedPlanes, move: Move, ignore_index: int) -> np.ndarray:
    """(h, w, P) result: each pixel takes the value at its centre, or is ignored beyond the border."""
    if isinstance(planes, PackedPlanes):
        return _move_packed(planes, move).unpack()
    if planes.shape[2] > 1:
        window, within = _needed(move, planes.shape[:2])
        if are_bits(planes[window]):  # packing them costs less than to move each
            return _move_packed(pack_planes(planes[window], ""), within).unpack()
    return _move_values(planes, move, ignore_index)


def _move_packed(planes: PackedPlanes, move: Move) -> PackedPlanes:
    """Bits move as bytes do. What is 0 beyond the border is not known there."""
    bits, known, inside = _move_values(planes.bits, move, 0), planes.known, None
    if known is not None:
        known = _move_values(known, move, 0)
    elif _reaches_out(move, planes.shape[:2]):
        inside = _move_values(np.full((*planes.shape[:2], 1), 255, np.uint8), move, 0)[..., 0]
    return PackedPlanes(bits, known, planes.num_planes, inside)


def _move_values(planes: np.ndarray, move: Move, fill: int) -> np.ndarray:
    """Nearest, and `fill` beyond the border."""
    if move.is_straight:
        window = cut_planes(planes, move.corner, move.window_hw, fill)
        return _straight(window, move, cv2.INTER_NEAREST_EXACT)
    return _warp(planes, move, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT, fill)


def _straight(window: np.ndarray, move: Move, interpolation: int) -> np.ndarray:
    """The window in its size, flipped and turned."""
    return _in_bands(window, move.size_hw, lambda part: _turned(_sized(part, move.size_hw, interpolation), move))


def _sized(window: np.ndarray, size_hw: tuple[int, int], interpolation: int) -> np.ndarray:
    if window.shape[:2] == size_hw:
        return window
    return cv2.resize(np.ascontiguousarray(window), size_hw[::-1], interpolation=interpolation)


def _turned(window: np.ndarray, move: Move) -> np.ndarray:
    if move.flip_x or move.flip_y:
        window = cv2.flip(window, -1 if move.flip_x and move.flip_y else int(move.flip_x))
    if move.quarters:
        window = cv2.rotate(window, _TURNS[move.quarters])
    return window


def _warp(array: np.ndarray, move: Move, interpolation: int, border: int, fill: int = 0) -> np.ndarray:
    window, within = _needed(move, array.shape[:2])
    matrix = within.to_source()
    return _in_bands(
        array[window],
        move.size_hw,
        lambda bands: cv2.warpAffine(
            bands,
            matrix,
            move.size_hw[::-1],
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=border,
            borderValue=(fill,) * 4,
        ),
    )


def _needed(move: Move, image_hw: tuple[int, ...]) -> tuple[tuple[slice, slice], Move]:
    """The part of an image that a move reads, and the move within it. OpenCV warps no image wider than 32767."""
    slices, corner = [], []
    for low, high, begin, side in zip(*_reach(move), move.corner, image_hw, strict=True):
        # One pixel more on each side, for the interpolation; at least one pixel, which is mirrored.
        start = min(max(0, int(np.floor(low)) - 1), side - 1)
        slices.append(slice(start, max(start + 1, min(side, int(np.ceil(high)) + 2))))
        corner.append(begin - start)
    return (slices[0], slices[1]), replace(move, corner=(corner[0], corner[1]))


def _reaches_out(move: Move, image_hw: tuple[int, ...]) -> bool:
    """Whether a pixel of the result lies beyond the border of the image, or so near that OpenCV may round it there."""
    return any(low < -0.49 or high > side - 0.51 for low, high, side in zip(*_reach(move), image_hw, strict=True))


def _reach(move: Move) -> tuple[list[float], list[float]]:
    """Smallest and largest (row, column) in the image over all pixels of the result."""
    low, high = [], []
    for a, b, start in reversed(move.to_source().tolist()):
        over_x, over_y = a * (move.size_hw[1] - 1), b * (move.size_hw[0] - 1)
        low.append(start + min(0, over_x) + min(0, over_y))
        high.append(start + max(0, over_x) + max(0, over_y))
    return low, high


def _in_bands(array: np.ndarray, size_hw: tuple[int, int], change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` applied to a few bands at a time; the result is contiguous and owns its memory."""
    bands = array.shape[2]
    if bands in _BANDS_AT_ONCE:
        changed = change(array).reshape(*size_hw, bands)
        return changed.copy() if np.may_share_memory(changed, array) else changed
    result = np.empty((*size_hw, bands), array.dtype)
    start = 0
    while start < bands:
        stop = start + next(n for n in _BANDS_AT_ONCE if n <= bands - start)
        part = np.ascontiguousarray(array[..., start:stop])
        result[..., start:stop] = change(part).reshape(*size_hw, -1)
        start = stop
    return result
