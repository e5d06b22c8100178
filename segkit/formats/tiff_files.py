"""TIFF images of any depth and number of bands, which OpenCV reads only in part."""

from __future__ import annotations

import io
import logging
import math
import struct
from mmap import mmap
from typing import Any

import cv2
import numpy as np
import tifffile

from segkit.formats.image_checks import check_encoded
from segkit.formats.image_pixels import as_pixels, check_pixels, upright

# Values of 16 bands for each pixel that is allowed: of a file with hundreds of bands, fewer pixels are.
_MAX_BANDS = 16
_GRAY_FROM_WHITE, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6
# Lightness and two colours: Lab (CIE, ICC, ITU) and the logarithms of SGI.
_OTHER_COLOURS = (8, 9, 10, 32844, 32845)
# What ExtraSamples calls a fourth band that is transparency: premultiplied or not.
_ALPHA = (1, 2)
# Compression methods that fill a buffer of known size, with the bytes that one byte may become: none, CCITT (which
# leaves out rows that do not change), LZW, deflate, PackBits, LZMA, ZSTD.
_ANY = 1 << 40
_GROWTH = {1: 1, 2: _ANY, 3: _ANY, 4: _ANY, 5: 2600, 8: 1040, 32773: 64, 32946: 1040, 34925: _ANY, 50000: _ANY}
# Methods that store whole JPEG, JPEG 2000, PNG or WebP files, each with a size of its own.
_PICTURES = (7, 33003, 33005, 34712, 34933, 50001)


def decode_tiff(data: bytes, gray: bool | None, limit: int) -> np.ndarray:
    """(H, W, B) of the first picture in a TIFF file; see `read_image_file`.

    Raises:
        ValueError: says what is wrong, without the name of the file.
    """
    # Damage is raised below with the name of the file; tifffile would print it as well.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        # Not other files, which the description of an OME-TIFF may name.
        check_chain(data)
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            series = file.series[0]
            _check_size(series, limit)
            check_colours(series.keyframe)
            for page in series.pages:
                if page is not None:
                    check_page(page, data)
            image, page = _bands_last(series.asarray(), series.axes), series.keyframe
            image = upright(as_depth(image, page), int(tag_value(page, "Orientation", 1)))
            return np.ascontiguousarray(as_colours(image, page, gray) if image.dtype == np.uint8 else image)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # tifffile and imagecodecs raise many kinds, down to struct.error
        raise ValueError(f"cannot be decoded as a TIFF image ({error or type(error).__name__})") from None


def tiff_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the first picture in a TIFF file declares.

    Raises:
        ValueError: says what is wrong, without the name of the file.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        check_chain(data)
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            return _size_of(file.series[0])
    except (Refused, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"cannot be decoded as a TIFF image ({error or type(error).__name__})") from None


class Refused(ValueError):
    """What is wrong is known and said."""


def _size_of(series: Any) -> tuple[int, int]:
    sizes = dict(zip(series.axes, map(int, series.shape), strict=True))
    return sizes.get("Y", 1), sizes.get("X", 1)


def _check_size(series: Any, limit: int) -> None:
    values = math.prod(map(int, series.shape))
    size_hw = _size_of(series)
    try:
        check_pixels(size_hw, limit)
    except ValueError as error:
        raise Refused(str(error)) from None
    if not 0 < values <= _MAX_BANDS * limit:
        shape = "x".join(map(str, series.shape))
        raise Refused(f"declares {shape} values, expected at most {_MAX_BANDS} for each of {limit} pixels")


def check_chain(data: bytes | mmap) -> None:
    """Refuse a TIFF file whose pages lead in a circle, which tifffile would follow for minutes.

    Raises:
        ValueError: says so, without the name of the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    # Where the first page stands, how its entries are counted, how long one is, how the next page is told.
    first, count, entry, link = (8, "Q", 20, "Q") if 43 in data[2:4] else (4, "H", 12, "I")
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + link, data, first)
        while offset:
            if offset in seen:
                raise Refused("is damaged: its pages lead in a circle")
            seen.add(offset)
            (entries,) = struct.unpack_from(order + count, data, offset)
            (offset,) = struct.unpack_from(order + link, data, offset + struct.calcsize(count) + entry * entries)
    except struct.error:
        return  # a page beyond the end, at which tifffile stops


def check_page(page: Any, data: bytes | mmap) -> None:
    """Refuse a page whose strips or tiles are not all there, or would unfold to more than the page.

    Raises:
        ValueError: says what is wrong, without the name of the file.
    """
    key = page.keyframe
    if key.compression not in _GROWTH and key.compression not in _PICTURES:
        raise Refused(f"is compressed by method {key.compression} of TIFF, which is not read")
    size = key.imagedepth * key.imagelength * key.imagewidth
    tile = key.tiledepth * key.tilelength * key.tilewidth if key.is_tiled else 0
    if tile > 4 * size + 2**20:
        raise Refused(f"is cut into tiles of {tile} pixels, but has only {size}")
    parts = math.prod(key.chunked)
    if not len(page.dataoffsets) >= parts <= len(page.databytecounts):
        raise Refused(f"is damaged: it has {len(page.dataoffsets)} of {parts} parts of its picture")
    stored, empty = 0, 0
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        # tifffile fills strips that lie behind the end of the file with zeros.
        if offset + count > len(data):
            raise Refused(f"is cut short: data up to byte {offset + count} of {len(data)}")
        if key.compression in _PICTURES and count:
            _check_picture(data[offset : offset + count], key)
        stored, empty = stored + count, empty + (not count)
    # Strips without bytes are legal, and empty.
    if not empty and size * key.samplesperpixel * key.bitspersample // 8 > _growth(key) * stored + 4096:
        raise Refused(
            f"declares {key.imagelength}x{key.imagewidth} pixels of {key.samplesperpixel} bands, "
            f"which its {stored} bytes of data cannot hold"
        )


def _growth(key: Any) -> int:
    return _GROWTH.get(key.compression, _ANY)


def _check_picture(content: bytes, key: Any) -> None:
    """Refuse a strip or tile that is an image file of its own, larger than its place."""
    height, width = check_encoded(content).size_hw
    room = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)
    if height > max(room[0], key.imagelength if not key.is_tiled else 0) or width > room[1]:
        raise Refused(f"holds a part of {height}x{width} pixels, expected at most {room[0]}x{room[1]}")


def check_colours(page: Any) -> None:
    """Refuse colours that segkit does not turn into red, green and blue."""
    if page.photometric in _OTHER_COLOURS:
        raise Refused(f"has colours of kind {page.photometric} of TIFF, expected gray, RGB, palette or CMYK")


def _bands_last(stored: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, B) from whatever order the bands lie in: interleaved, planar, or a page each."""
    keep = [i for i, n in enumerate(stored.shape) if n != 1 or axes[i] in "YX"]
    stored, axes = stored.reshape([stored.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    if stored.ndim == 2:
        return stored[..., None]
    if stored.ndim != 3:
        raise Refused(f"holds an array of shape {stored.shape} (axes {axes}), expected one picture of several bands")
    if axes.endswith("YX"):
        # Many writers store (H, W, B) without saying so, and a reader sees H pages of W x B pixels.
        interleaved = axes[0] in "QIC" and stored.shape[2] < min(stored.shape[:2])
        return stored if interleaved else np.moveaxis(stored, 0, -1)
    return stored


def as_depth(image: np.ndarray, page: Any) -> np.ndarray:
    """The same image in uint8, uint16 or float32, black at 0, palettes as colours."""
    if image.dtype == bool:
        image = image.view(np.uint8) * np.uint8(255)
    if page.photometric == _PALETTE and page.colormap is not None:
        if image.max(initial=0) >= page.colormap.shape[1]:
            raise ValueError(f"index {image.max()} of a palette of {page.colormap.shape[1]} colours")
        return (page.colormap >> 8).astype(np.uint8).T[image[..., 0]]
    if page.photometric == _GRAY_FROM_WHITE and image.dtype.kind == "u":
        image = np.iinfo(image.dtype).max - image
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype.kind not in "iuf":
        raise Refused(f"has pixels of {image.dtype}, expected whole numbers or floats")
    return image.astype(np.float32)


def as_colours(image: np.ndarray, page: Any, gray: bool | None) -> np.ndarray:
    """8-bit gray, gray + alpha, RGB, RGBA, CMYK and YCbCr as RGB (or gray); other bands as they are."""
    extra = tuple(np.atleast_1d(tag_value(page, "ExtraSamples", ())))
    bands = image.shape[2]
    if page.photometric == _CMYK and bands >= 4:
        paper, white = 255 - image[..., :3], 255 - image[..., 3]
        for k in range(3):  # one after the other, for the memory
            paper[..., k] = cv2.multiply(paper[..., k], white, scale=1 / 255)
        image = paper
    elif page.photometric == _YCBCR and bands == 3 and page.compression not in _PICTURES:
        image = cv2.cvtColor(np.ascontiguousarray(image[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    elif bands in (2, 4) and not (extra and int(extra[-1]) in _ALPHA):
        return image
    return image if image.shape[2] > 4 else as_pixels(image, gray)


def tag_value(page: Any, name: str, default: Any) -> Any:
    """What a tag of a page says."""
    tag = page.tags.get(name)
    return default if tag is None else tag.value
