"""How large a file may say it is before it is refused: fifty bytes can declare a terabyte."""

from __future__ import annotations

import os

MAX_PIXELS_VARIABLE = "SEGKIT_MAX_PIXELS"
# 32768 x 32768 RGB pixels are 3 GiB; OpenCV refuses more as well.
_MAX_PIXELS = 2**30
# 1290 x 1290 x 1290: larger than any scanner's volume, small enough not to take a machine down.
_MAX_VOXELS = 2**31
# The way out, for messages.
RAISE_LIMIT = f"raise {MAX_PIXELS_VARIABLE} to read more"


def max_pixels() -> int:
    """Pixels that one picture may have: 2**30, or what the environment variable SEGKIT_MAX_PIXELS says.

    Raises:
        ValueError: the variable holds no whole number above 0.
    """
    return _limit(_MAX_PIXELS)


def max_windowed_pixels() -> int:
    """Pixels of a picture that is read window by window, and never held: 2**34, or 16 times what the variable says."""
    return 16 * max_pixels()


def max_voxels() -> int:
    """Voxels (times bands) that one volume may have: 2**31, or what SEGKIT_MAX_PIXELS says."""
    return _limit(_MAX_VOXELS)


def _limit(default: int) -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{MAX_PIXELS_VARIABLE} is {text!r}: expected a number of pixels, such as 100000000.")
    return int(text)
