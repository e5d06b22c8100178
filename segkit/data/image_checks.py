"""What the bytes of a PNG, JPEG, WebP or BMP file say about themselves, before a decoder sees them.

OpenCV decodes a file that was cut short as far as it goes and fills the rest with gray or black, so whether a file
is whole is decided here. A size in a header is believed only up to a limit: 50 bytes can ask for a terabyte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from segkit.formats.png_files import PNG_SIGNATURE, walk_chunks

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_EXIF = 0xE1
# A segment of JPEG is no longer than that.
_MAX_EXIF = 65535
# Start-of-frame markers of JPEG; C4, C8 and CC in between mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Header:
    """What a file declares.

    Attributes:
        kind: `png`, `jpeg`, `webp`, `bmp` or `other`.
        size_hw: (height, width), or None where it is not known before decoding.
        depth: bits per band, or None where it is not known before decoding (PGM, JPEG 2000).
        bands: of a JPEG, as stored, else None.
        upright: False if a JPEG says that its rows do not run from left to right and top to bottom.
    """

    kind: str
    size_hw: tuple[int, int] | None = None
    depth: int | None = 8
    bands: int | None = None
    upright: bool = True


def is_tiff(data: bytes) -> bool:
    """Whether `data` starts like a TIFF or BigTIFF file."""
    return data[:4] in _TIFF


def check_encoded(data: bytes) -> Header:
    """Header of an encoded image whose bytes are all there.

    Raises:
        ValueError: says what is wrong, without the name of the file: cut short, damaged.
    """
    if data.startswith(PNG_SIGNATURE):
        return _check_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _check_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _check_webp(data)
    if data.startswith(b"BM"):
        return _check_bmp(data)
    return Header("other", depth=None)


def _check_png(data: bytes) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ValueError("is cut short: the PNG header is not complete")
    width, height, depth = struct.unpack(">IIB", data[16:25])
    # libpng stops at a wrong check sum and leaves the rest of the picture black.
    for _ in walk_chunks(data):
        pass
    return Header("png", (height, width), depth)


def _check_jpeg(data: bytes) -> Header:
    size_hw, bands, upright, position = None, None, True, 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2  # fill bytes and marks without content
            continue
        if marker in _JPEG_FRAMES:
            size_hw = struct.unpack(">HH", data[position + 5 : position + 9])
            bands = data[position + 9]
        if marker == _JPEG_EXIF and data[position + 4 : position + 10] == b"Exif\0\0":
            upright = _exif_orientation(data[position + 10 :][:_MAX_EXIF]) == 1
        if marker == 0xDA:
            # Inside the picture's data FF is always followed by 00 or a restart mark, so FF D9 is the end mark. It is
            # looked for after the scan began: an embedded thumbnail has an end mark of its own.
            if data.rfind(b"\xff\xd9", position) < 0:
                break
            return Header("jpeg", size_hw, bands=bands, upright=upright)
        position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    raise ValueError("is cut short: the end mark of JPEG is missing")


def _exif_orientation(exif: bytes) -> int:
    """What the first directory says (TIFF 6.0, tag 274); 1 where it says nothing, 0 where it cannot be read."""
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


def _check_webp(data: bytes) -> Header:
    (length,) = struct.unpack("<I", data[4:8])
    if 8 + length > len(data) or len(data) < 30:
        raise ValueError(f"is cut short: WebP declares {8 + length} bytes, the file has {len(data)}")
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    return Header("webp", (height, width))


def _check_bmp(data: bytes) -> Header:
    if len(data) < 26:
        raise ValueError("is cut short: the BMP header is not complete")
    (length,) = struct.unpack("<I", data[2:6])
    if length > len(data):
        raise ValueError(f"is cut short: BMP declares {length} bytes, the file has {len(data)}")
    (header_length,) = struct.unpack("<I", data[14:18])
    width, height = struct.unpack("<HH" if header_length == 12 else "<ii", data[18 : 22 if header_length == 12 else 26])
    return Header("bmp", (abs(height), abs(width)))
