"""Sizes of images: what a `resize` option asks for."""

from __future__ import annotations

from collections.abc import Sequence

Resize = int | Sequence[int] | None


def fit_size(size_hw: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """(height, width) that an image of `size_hw` gets.

    Args:
        resize: None keeps the size; [height, width] gives exactly that; a number is the length of the longer
            side, and the aspect is kept.

    Raises:
        ValueError: any other `resize`.
    """
    if resize is None:
        return size_hw
    if isinstance(resize, int) and not isinstance(resize, bool) and resize > 0:
        scale = resize / max(size_hw)
        return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))
    if isinstance(resize, Sequence) and not isinstance(resize, str) and len(resize) == 2:
        height, width = resize
        if all(isinstance(n, int) and n > 0 for n in resize):
            return height, width
    raise ValueError(f"resize is {resize!r}: expected [height, width] or the length of the longer side, in pixels.")
