"""What becomes of decoded pixels, whatever kind of file they come from."""

from __future__ import annotations

import struct

import numpy as np

from segkit.formats.limits import RAISE_LIMIT


def check_pixels(size_hw: tuple[int, int], limit: int) -> None:
    """Refuse a header that declares no pixels, or more than `limit`."""
    if not 0 < size_hw[0] * size_hw[1] <= limit:
        raise ValueError(f"declares {size_hw[0]}x{size_hw[1]} pixels, expected 1 to {limit} ({RAISE_LIMIT})")


def as_pixels(image: np.ndarray, gray: bool | None) -> np.ndarray:
    """(H, W, B) in uint8, uint16 or float32 of a decoded image whose bands are in order; 8-bit as RGB or gray."""
    import cv2

    image = image[..., None] if image.ndim == 2 else image
    if image.dtype not in (np.uint8, np.uint16):
        return image.astype(np.float32)
    if image.dtype == np.uint16:
        return image
    if image.shape[2] in (2, 4):
        image = image[..., :-1]
    if image.shape[2] == 1 and gray is False:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and gray:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
    return np.ascontiguousarray(image)


def exif_orientation(exif: bytes) -> int:
    """What the first directory of an EXIF block says (TIFF 6.0, tag 274); 1 where it says nothing, 0 if unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, first + 2 + 12 * entry)
            if tag == 274 and kind == 3:
                return value
    except struct.error:
        return 0
    return 1


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the orientation a camera noted (TIFF 6.0, tag 274)."""
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1] if orientation in (2, 3) else image
    if orientation in (3, 4):
        image = image[::-1]
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
        image = image[:, ::-1] if orientation in (6, 7) else image
        image = image[::-1] if orientation in (7, 8) else image
    return image
