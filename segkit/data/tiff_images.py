"""TIFF images of any depth and number of bands, which OpenCV reads only in part."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

# What ExtraSamples calls a fourth band that is transparency: premultiplied or not.
_ALPHA = (1, 2)


def read_tiff(path: Path, data: bytes, gray: bool, max_pixels: int) -> np.ndarray:
    """(H, W, B) of the first picture in a TIFF file; see `read_image`."""
    # Damage is raised below with the name of the file; tifffile would print it as well.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            _check_size(path, series.shape, max_pixels, series.axes)
            _check_whole(series, len(data))
            stored, page, axes = series.asarray(), series.keyframe, series.axes
    except _Refused:
        raise
    except Exception as error:  # tifffile and imagecodecs raise many kinds, down to struct.error
        raise ValueError(
            f"{path}: cannot be decoded as a TIFF image ({error or type(error).__name__}). "
            "Copy it again, or leave it out with `quarantine`."
        ) from None
    image = _bands_last(path, stored, axes)
    image = _as_pixels(path, image, page)
    image = _upright(image, int(_tag(page, "Orientation", 1)))
    if image.dtype == np.uint8:
        image = _as_colours(image, page, gray)
    return np.ascontiguousarray(image)


class _Refused(ValueError):
    """A message that already names the file."""


def _check_size(path: Path, shape: tuple[int, ...], max_pixels: int, axes: str) -> None:
    bands = [n for n, a in zip(shape, axes, strict=True) if a == "S"]
    pixels = int(np.prod([int(n) for n in shape], dtype=object)) // max(1, bands[0] if bands else 1)
    if not 0 < pixels <= max_pixels:
        raise _Refused(
            f"{path}: declares {'x'.join(map(str, shape))} values, expected 1 to {max_pixels} pixels. "
            "Cut it into tiles, or leave it out with `quarantine`."
        )


def _check_whole(series: Any, length: int) -> None:
    # tifffile fills strips that lie behind the end of the file with zeros.
    for page in series.pages:
        if page is None:
            continue
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if offset + count > length:
                raise ValueError(f"cut short: data up to byte {offset + count} of {length}")


def _bands_last(path: Path, stored: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, B) from whatever order the bands lie in: interleaved, planar, or a page each."""
    keep = [i for i, n in enumerate(stored.shape) if n != 1 or axes[i] in "YX"]
    stored, axes = stored.reshape([stored.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    if stored.ndim == 2:
        return stored[..., None]
    if stored.ndim != 3:
        raise ValueError(
            f"{path}: holds an array of shape {stored.shape} (axes {axes}), expected one picture of several bands."
        )
    if axes.endswith("YX"):
        # Many writers store (H, W, B) without saying so, and a reader sees H pages of W x B pixels.
        interleaved = axes[0] in "QIC" and stored.shape[2] < min(stored.shape[:2])
        return stored if interleaved else np.moveaxis(stored, 0, -1)
    return stored


def _as_pixels(path: Path, image: np.ndarray, page: Any) -> np.ndarray:
    """The same image in uint8, uint16 or float32, black at 0."""
    photometric = int(_tag(page, "PhotometricInterpretation", 1))
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if photometric == 3 and page.colormap is not None:
        return (page.colormap[:, image[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if photometric == 0 and image.dtype.kind == "u":
        image = np.iinfo(image.dtype).max - image
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype.kind not in "iuf":
        raise ValueError(f"{path}: pixels are {image.dtype}, expected whole numbers or floats.")
    return image.astype(np.float32)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the orientation a camera noted (TIFF 6.0, tag 274)."""
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1] if orientation in (2, 3) else image
    if orientation in (3, 4):
        image = image[::-1]
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
        image = image[:, ::-1] if orientation in (6, 7) else image
        image = image[::-1] if orientation in (7, 8) else image
    return image


def _as_colours(image: np.ndarray, page: Any, gray: bool) -> np.ndarray:
    """8-bit gray, gray + alpha, RGB and RGBA as RGB (or gray); other bands as they are."""
    extra = _tag(page, "ExtraSamples", ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    if image.shape[2] in (2, 4) and extra and int(extra[-1]) in _ALPHA:
        image = image[..., :-1]
    if image.shape[2] == 1 and not gray:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and gray:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
    return image


def _tag(page: Any, name: str, default: Any) -> Any:
    tag = page.tags.get(name)
    return default if tag is None else tag.value
