"""Windows of an image and its planes: how large, where, and what they hold beyond the border."""

from __future__ import annotations

import cv2
import numpy as np

from segkit.data.packed import PackedPlanes, unpacked

SizeHW = tuple[int, int]
# How far the window of a zoomed crop may reach beyond a small image, as a share of the image's side.
_MAX_WINDOW = 1.5
# OpenCV pads images of at most so many bands.
_MAX_BANDS = 4


def zoomed_window(size_hw: SizeHW, image_hw: SizeHW, zoom: tuple[float, float], rng: np.random.Generator) -> SizeHW:
    """Size of a window that becomes `size_hw` when it grows by a random factor between `zoom`.

    A factor is raised where the window would reach far beyond a small image.
    """
    covering = min(1.0, max(new / old for new, old in zip(size_hw, image_hw, strict=True)))
    # Logarithmic: half as large is as likely as twice as large.
    factor = float(np.exp(rng.uniform(np.log(max(zoom[0], covering / _MAX_WINDOW)), np.log(zoom[1]))))
    return max(1, round(size_hw[0] / factor)), max(1, round(size_hw[1] / factor))


def roomy_window(size_hw: SizeHW, image_hw: SizeHW, margin: float) -> SizeHW:
    """Size of a window that is up to `margin` times `size_hw`, in the same shape: as much as the image has room for."""
    room = min(old / new for new, old in zip(size_hw, image_hw, strict=True))
    factor = max(1.0, min(margin, room))
    return int(size_hw[0] * factor), int(size_hw[1] * factor)


def place_window(window_hw: SizeHW, image_hw: SizeHW, rng: np.random.Generator) -> tuple[int, int]:
    """Random (top, left) of a window inside the image, or of one around it where it is larger."""
    top, left = (
        int(rng.integers(min(0, side - window), max(0, side - window) + 1))
        for window, side in zip(window_hw, image_hw, strict=True)
    )
    return top, left


def cut_image(image: np.ndarray, corner: tuple[int, int], window_hw: SizeHW) -> np.ndarray:
    """(h, w, B) window that begins at (top, left); beyond the border the image is mirrored. A view where it can be."""
    inside, ((above, below), (before, after)) = _inside(image.shape[:2], corner, window_hw)
    image = image[inside]
    if image.shape[:2] == window_hw:
        return image
    if image.shape[2] <= _MAX_BANDS:
        mirrored = cv2.copyMakeBorder(image, above, below, before, after, cv2.BORDER_REFLECT_101)
        return mirrored.reshape(*window_hw, image.shape[2])
    return np.pad(image, ((above, below), (before, after), (0, 0)), mode="reflect")


def cut_planes(
    planes: np.ndarray | PackedPlanes, corner: tuple[int, int], window_hw: SizeHW, ignore_index: int
) -> np.ndarray:
    """(h, w, P) window that begins at (top, left); beyond the border planes are ignored. Unpacks the window alone."""
    inside, ((above, _), (before, _)) = _inside(planes.shape[:2], corner, window_hw)
    found = unpacked(planes[inside])
    if found.shape[:2] == window_hw:
        return found
    filled = np.full((*window_hw, planes.shape[2]), ignore_index, found.dtype)
    filled[above : above + found.shape[0], before : before + found.shape[1]] = found
    return filled


def _inside(
    image_hw: tuple[int, ...], corner: tuple[int, int], window_hw: SizeHW
) -> tuple[tuple[slice, slice], list[tuple[int, int]]]:
    """The part of a window that lies in the image, and by how much the window reaches beyond on each side."""
    slices, beyond = [], []
    for side, start, length in zip(image_hw, corner, window_hw, strict=True):
        slices.append(slice(max(0, start), max(0, start + length)))
        beyond.append((max(0, -start), max(0, start + length - side)))
    return (slices[0], slices[1]), beyond
