"""From the bytes of an image file to the array that a model takes."""

from __future__ import annotations

import numpy as np

from segkit.data.intensity import image_scale
from segkit.formats.image_checks import is_picture
from segkit.formats.image_files import declared_size, decode_image
from segkit.formats.limits import max_pixels
from segkit.inference.models import SegmentationModel
from segkit.serving.limits import Refused

_KINDS = "PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000 or PNM"


def check_picture(data: bytes, most_pixels: int) -> int:
    """Pixels of an image file, told from its header: fifty bytes can declare a terabyte.

    Raises:
        Refused: no image, a volume, damaged, or larger than the server takes.
    """
    volume = _volume_kind(data)
    if volume is not None:
        raise Refused(
            415,
            f"The file is a {volume}, and the server takes one picture at a time ({_KINDS}). "
            "Run `segkit predict` on volumes.",
        )
    if not is_picture(data):
        raise Refused(415, f"The file is no image that is read here. Send {_KINDS}.")
    try:
        height, width = declared_size(data)
    except ValueError as error:
        raise Refused(400, _damaged(error)) from None
    if height * width > min(most_pixels, max_pixels()):
        raise Refused(
            413,
            f"The image declares {height}x{width} (height x width) pixels, "
            f"and this server takes at most {most_pixels / 1e6:g} megapixels with this model. "
            "Send a smaller one, or run `segkit predict` where the file is.",
        )
    return height * width


def decode_picture(data: bytes, model: SegmentationModel) -> np.ndarray:
    """(H, W, B) of an image file as the model's reading gives it.

    Raises:
        Refused: damaged, not finite, or of another number of bands.
    """
    try:
        image = decode_image(data, model.reading.gray)
    except ValueError as error:
        raise Refused(400, _damaged(error)) from None
    except MemoryError:
        raise Refused(413, "The image has more pixels than there is memory for. Send a smaller one.") from None
    if image.shape[2] != model.in_channels:
        raise Refused(
            422,
            f"The image has {image.shape[2]} bands, and the model takes {model.in_channels}. "
            "Send images such as it was trained on.",
        )
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise Refused(422, "The image holds values that are NaN or infinite. Replace them by numbers.")
    # One picture is no slice of a volume, so `volume` means the image here, as where files are read.
    return image if model.reading.normalize == "dataset" else image_scale(image).apply(image)


def _damaged(error: ValueError) -> str:
    return f"The image {error}."


def _volume_kind(data: bytes) -> str | None:
    if data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] == b"n+2\0":
        return "NIfTI volume"
    if data[:2] == b"\x1f\x8b":
        return "gzip archive, as NIfTI volumes are"
    return "DICOM file" if data[128:132] == b"DICM" else None
