"""Pixels of one image file of any kind, or an error that names it; no file is decoded that declares too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.formats.files import read_whole
from segkit.formats.image_checks import Header, check_encoded, is_tiff
from segkit.formats.image_pixels import as_pixels, check_pixels, upright
from segkit.formats.limits import max_pixels
from segkit.formats.png_files import bare_png
from segkit.formats.rare_checks import opaque_gif, plain_pnm

TIFF_SUFFIXES = (".tif", ".tiff")
# Of every kind of file that is read here.
PICTURE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", *TIFF_SUFFIXES, ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pfm",
)  # fmt: skip

# What the pixels of a PNG need, and the orientation that a camera noted.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf")

_NAMES = {
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "bmp": "BMP",
    "gif": "GIF",
    "pnm": "PNM",
    "jp2": "JPEG 2000",
}


def read_image_file(path: str | Path, gray: bool | None = False) -> np.ndarray:
    """(H, W, B) pixels of an image file in stored units; uint8, uint16 or float32.

    8-bit images are red, green, blue: gray is repeated, alpha is dropped, palettes and 1-bit images become colours,
    and the orientation a camera noted is applied. Every other depth, and 8-bit TIFF and JPEG 2000 files of more than
    4 bands keep the bands they have. Several pages of a TIFF are bands of one image. Of an animated PNG
    the still picture is read; other animations are refused.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, PBM, PGM, PPM, PFM, JPEG 2000 or TIFF, told by content and not by suffix.
        gray: 8-bit images give one band, B = 1; None: gray ones give one, and those of colours three.

    Raises:
        ValueError: names the file: missing, empty, cut short, damaged, too large, or no image.
    """
    path = Path(path)
    data = read_whole(path)
    if not data:
        raise ValueError(f"{path}: the file is empty. Copy it again, or leave it out with `quarantine`.")
    try:
        return decode_image(data, gray)
    except ValueError as error:
        raise ValueError(
            f"{path}: the file {error}. Copy it again, save it as PNG, or leave it out with `quarantine`."
        ) from None
    except MemoryError:
        raise ValueError(
            f"{path}: the file has more pixels than there is memory for. "
            "Cut it into tiles, or leave it out with `quarantine`."
        ) from None


def decode_image(data: bytes, gray: bool | None = False) -> np.ndarray:
    """(H, W, B) pixels of the bytes of an image file, as `read_image_file` reads them; errors do not name the file."""
    limit = max_pixels()
    if is_tiff(data):
        # Imported here: tifffile costs 0.1 s, and most data sets hold no TIFF.
        from segkit.formats.tiff_files import decode_tiff

        return decode_tiff(data, gray, limit)
    return _decode(data, gray, limit)


def declared_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the bytes of an image file declare, as they are stored; no pixel is decoded.

    Raises:
        ValueError: says what is wrong, without the name of the file: cut short, damaged, no image.
    """
    if is_tiff(data):
        from segkit.formats.tiff_files import tiff_size

        return tiff_size(data)
    return check_encoded(data).size_hw


def _decode(data: bytes, gray: bool | None, limit: int) -> np.ndarray:
    """(H, W, B) of all kinds but TIFF; errors do not name the file."""
    header = check_encoded(data)
    check_pixels(header.size_hw, limit)
    if header.kind == "gif":
        image = _decode_with("gif_decode", opaque_gif(data), gray, index=0)
    elif header.kind == "jp2":
        image = _decode_with("jpeg2k_decode", data, gray)
    else:
        image = None
        if header.kind == "jpeg" and header.bands == 3 and header.orientation == 1 and not gray:
            # libjpeg-turbo with its SIMD code: the same values in half of the time.
            image = _decode_with("jpeg8_decode", data, gray)
        if image is None:
            image = _decode_with_opencv(data, header, gray)
    if image is None or sorted(image.shape[:2]) != sorted(header.size_hw):
        raise ValueError(f"cannot be decoded, though it starts like {_NAMES[header.kind]}")
    return image


def _decode_with(decoder: str, data: bytes, gray: bool | None, **options: int) -> np.ndarray | None:
    """(H, W, B) by a decoder of imagecodecs, None where it fails."""
    import imagecodecs

    try:
        return as_pixels(getattr(imagecodecs, decoder)(data, **options), gray)
    except MemoryError:
        raise
    except Exception:  # imagecodecs has an error of its own for each codec
        return None


def _decode_with_opencv(data: bytes, header: Header, gray: bool | None) -> np.ndarray | None:
    import cv2

    if header.kind == "png":
        data = bare_png(data, _PNG_CHUNKS)
    elif header.kind == "pnm":
        data = plain_pnm(data)
    # Damage is raised with the name of the file; OpenCV would print it as well.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    deep = header.depth > 8
    flag = {True: cv2.IMREAD_GRAYSCALE, False: cv2.IMREAD_COLOR, None: cv2.IMREAD_ANYCOLOR}[gray]
    flag = cv2.IMREAD_UNCHANGED if deep else flag
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
    if image is None:
        return None
    image = image[..., None] if image.ndim == 2 else image
    if deep and header.kind == "png" and header.bands == 2:
        return image[..., [0, 3]]  # gray and alpha, which OpenCV spreads to four
    if image.shape[2] >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    # What is not decoded as colours or gray stays as it lies in the file.
    return np.ascontiguousarray(upright(image, header.orientation)) if deep else image
