"""Lossless JPEG and JPEG-LS for pydicom, by imagecodecs, which segkit needs anyway.

Scanners and archives compress by them more than by anything else, and pydicom reads neither without another package.
The names of what stands here are those that pydicom's `Decoder.add_plugin` asks for.
"""

from __future__ import annotations

from typing import Any

import imagecodecs

_DECODERS = {
    "1.2.840.10008.1.2.4.57": imagecodecs.jpegsof3_decode,  # JPEG, lossless, process 14
    "1.2.840.10008.1.2.4.70": imagecodecs.jpegsof3_decode,  # the same with first-order prediction
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_decode,
}
DECODER_DEPENDENCIES = dict.fromkeys(_DECODERS, ("imagecodecs",))


def is_available(uid: str) -> bool:
    """Whether this transfer syntax is decoded here."""
    return uid in _DECODERS


def decode_frame(source: bytes, runner: Any) -> bytes:
    """The pixels of one frame; `runner` is told how they lie."""
    pixels = _DECODERS[runner.transfer_syntax](source)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return pixels.tobytes()
