"""Pixels of DICOM files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.dicom_files import check_deflated, import_pydicom, read_header, scale_of
from segkit.formats.image_pixels import as_pixels
from segkit.formats.limits import RAISE_LIMIT, max_pixels

_GRAY = ("MONOCHROME1", "MONOCHROME2")
# Of pydicom's decoders, which all threads share.
_plugins = threading.Lock()
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom_image(path: Path, gray: bool | None = False) -> np.ndarray:
    """(H, W, B) pixels of a DICOM picture in the units of its modality; uint8, uint16 or float32.

    Radiographs that are stored with white at 0 (MONOCHROME1) are inverted. 8-bit pictures become red, green, blue,
    unless `gray` is True, or None, which keeps the bands that they have.

    Raises:
        ValueError: names the file: several frames, colours by palette, a compression that is not installed, damaged.
    """
    header = read_header(path)
    if header.count != 1:
        raise ValueError(f"{path}: holds {header.count} pictures, expected one.")
    stored, ds = read_pixels(path, max_pixels())
    if str(ds.PhotometricInterpretation) == "MONOCHROME1":
        # The range of the stored bits, not of the dtype: 12 bits in 16 would become nearly white.
        low = -(1 << (int(ds.BitsStored) - 1)) if ds.PixelRepresentation else 0
        stored = (2 * low + (1 << int(ds.BitsStored)) - 1 - stored.astype(np.int64)).astype(stored.dtype)
    return as_pixels(rescaled(stored, *scale_of(ds)), gray)


def read_pixels(path: Path, limit: int) -> tuple[np.ndarray, Any]:
    """(H, W), (H, W, 3) or (frames, H, W) stored values, and the data set that says what they mean.

    Args:
        limit: more pixels than that, all frames together, are refused before they are decoded.

    Raises:
        ValueError: names the file and, where a compression cannot be read, what to install.
    """
    pydicom = import_pydicom(path)
    from pydicom.pixels import pixel_array

    check_deflated(path)
    try:
        ds = pydicom.dcmread(path)
        pixels = int(ds.Rows) * int(ds.Columns) * int(ds.get("NumberOfFrames") or 1)
        if not 0 < pixels <= limit:
            raise _Refused(f"{path}: declares {pixels} pixels, expected 1 to {limit} ({RAISE_LIMIT}).")
        kind = str(ds.get("PhotometricInterpretation"))
        if kind not in (*_GRAY, *_COLOURS):
            raise _Refused(
                f"{path}: its photometric interpretation is {kind}, expected one of {', '.join((*_GRAY, *_COLOURS))}. "
                "Convert it to one of these."
            )
        if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
            raise _Refused(f"{path}: its pixels are no whole numbers, which are not read. Convert it to NIfTI.")
        _check_decodable(ds.file_meta.TransferSyntaxUID, path)
        # Without this, data behind the declared frames become further ones.
        return pixel_array(ds, allow_excess_frames=False), ds
    except _Refused:
        raise
    except Exception as error:  # pydicom and its plug-ins raise many kinds
        raise ValueError(
            f"{path}: the pixels cannot be decoded ({error or type(error).__name__}). "
            "Copy the file again, or leave it out with `quarantine`."
        ) from None


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Stored values in the units of the modality: as they are, int16 where that holds them, else float32."""
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope == 1.0 and intercept.is_integer() and stored.dtype.itemsize <= 2:
        values = stored.astype(np.int32) + int(intercept)
        low, high = values.min(), values.max()
        if low >= -32768 and high <= 32767:
            return values.astype(np.int16)
    return stored * np.float32(slope) + np.float32(intercept)


class _Refused(ValueError):
    """A message that already names the file."""


def _check_decodable(syntax: Any, path: Path) -> None:
    from pydicom.pixels import get_decoder

    from segkit.formats.dicom_plugin import decode_frame, is_available

    if not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _Refused(f"{path}: its compression ({syntax.name}) is not read. Store it uncompressed.") from None
    with _plugins:
        if not decoder.is_available and is_available(syntax):
            decoder.add_plugin("imagecodecs", (decode_frame.__module__, decode_frame.__name__))
    if not decoder.is_available:
        ways = "; or ".join(text.split(" - requires ")[-1] for text in decoder.missing_dependencies)
        raise _Refused(
            f"{path}: its compression ({syntax.name}) needs a plug-in of pydicom: pip install {ways or 'pylibjpeg'}."
        )
