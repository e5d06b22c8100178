"""What the bytes of an image file say about themselves, before a decoder sees them.

OpenCV decodes a file that was cut short as far as it goes and fills the rest with gray or black, so whether a file
is whole is decided here. A size in a header is believed only up to a limit, and only if the bytes that follow can
hold so many pixels: 50 bytes can ask for a terabyte. A kind whose size is not found here is not decoded at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from segkit.formats.image_pixels import exif_orientation
from segkit.formats.png_files import PNG_SAMPLES, PNG_SIGNATURE, check_packed, walk_chunks
from segkit.formats.rare_checks import GIF, JPEG_2000, check_gif, check_jpeg_2000, check_pnm, is_pnm

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_EXIF = 0xE1
# A segment of JPEG is no longer than that.
_MAX_EXIF = 65535
# Start-of-frame markers of JPEG; C4, C8 and CC in between mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Coded by Huffman: a block of 8 x 8 takes at least one bit. Arithmetic coding (C9 on) can do with less.
_JPEG_HUFFMAN = frozenset(range(0xC0, 0xC8))
_JPEG_PIXELS_PER_BYTE = 8 * 64
# Each scan of a progressive JPEG goes over the whole picture. Encoders write 10, at most some dozens.
_MAX_SCANS = 100
_BMP_BITS = {0: (1, 2, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), 3: (16, 32), 6: (16, 32)}


@dataclass(frozen=True)
class Header:
    """What a file declares.

    Attributes:
        kind: `png`, `jpeg`, `webp`, `bmp`, `gif`, `pnm` or `jp2`.
        size_hw: (height, width).
        depth: bits per band; 32 for floats.
        bands: as stored (one for a palette); None where it does not matter.
        orientation: of a JPEG or PNG, as EXIF counts (1 is upright); 0 if the note of it cannot be read.
    """

    kind: str
    size_hw: tuple[int, int]
    depth: int = 8
    bands: int | None = None
    orientation: int = 1


def is_tiff(data: bytes) -> bool:
    """Whether `data` starts like a TIFF or BigTIFF file."""
    return data[:4] in _TIFF


def is_picture(data: bytes) -> bool:
    """Whether `data` starts like a file of a kind that is read here, TIFF included; damaged or not."""
    starts = (PNG_SIGNATURE, b"\xff\xd8\xff", b"BM", *GIF, *JPEG_2000, *_TIFF)
    return data.startswith(starts) or is_pnm(data) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def check_encoded(data: bytes) -> Header:
    """Header of an encoded image whose bytes are all there.

    Raises:
        ValueError: says what is wrong, without the name of the file: cut short, damaged, several pictures, no image.
    """
    if data.startswith(PNG_SIGNATURE):
        return _check_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _check_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _check_webp(data)
    if data.startswith(b"BM"):
        return _check_bmp(data)
    if data.startswith(GIF):
        return Header("gif", check_gif(data))
    if is_pnm(data):
        return Header("pnm", *check_pnm(data))
    if data.startswith(JPEG_2000):
        return Header("jp2", *check_jpeg_2000(data))
    if data[4:8] == b"ftyp":
        raise ValueError("cannot be decoded as an image: AVIF, HEIC and videos are not read")
    raise ValueError(f"cannot be decoded as an image (it starts with {data[:12]!r})")


def _check_png(data: bytes) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ValueError("is cut short: the PNG header is not complete")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    # libpng stops at a wrong check sum and leaves the rest of the picture black.
    packed, orientation = 0, 1
    for kind, start, end in walk_chunks(data):
        if kind == b"IDAT":
            packed += end - start - 12
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
    check_packed(data[16:29], packed)
    return Header("png", (height, width), depth, PNG_SAMPLES.get(colour), orientation=orientation)


def _check_jpeg(data: bytes) -> Header:
    size_hw, bands, orientation, frame, position = (0, 0), None, 1, 0xC0, 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2  # fill bytes and marks without content
            continue
        if marker in _JPEG_FRAMES:
            size_hw, frame = struct.unpack(">HH", data[position + 5 : position + 9]), marker
            bands = data[position + 9]
        if marker == _JPEG_EXIF and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : position + 10 + _MAX_EXIF])
        if marker == 0xDA:
            # Inside the picture's data FF is always followed by 00 or a restart mark, so FF D9 is the end mark. It is
            # looked for after the scan began: an embedded thumbnail has an end mark of its own.
            if data.rfind(b"\xff\xd9", position) < 0:
                break
            _check_scans(data, position, size_hw, frame)
            return Header("jpeg", size_hw, bands=bands, orientation=orientation)
        position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    raise ValueError("is cut short: the end mark of JPEG is missing")


def _check_scans(data: bytes, position: int, size_hw: tuple[int, int], frame: int) -> None:
    if frame in _JPEG_HUFFMAN and size_hw[0] * size_hw[1] > _JPEG_PIXELS_PER_BYTE * (len(data) - position):
        raise ValueError(f"declares {size_hw[0]}x{size_hw[1]} pixels, which its {len(data)} bytes cannot hold")
    scans = data.count(b"\xff\xda", position, data.find(b"\xff\xd9", position))
    if scans > _MAX_SCANS:
        raise ValueError(f"goes over its pixels {scans} times, expected at most {_MAX_SCANS} scans of a JPEG")


def _check_webp(data: bytes) -> Header:
    (length,) = struct.unpack("<I", data[4:8])
    if 8 + length > len(data) or len(data) < 30:
        raise ValueError(f"is cut short: WebP declares {8 + length} bytes, the file has {len(data)}")
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 2:
            raise ValueError("is animated (WebP), expected one picture: save the frame that is meant")
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
    length, start, header_length = struct.unpack("<I4xII", data[2:18])
    if length > len(data):
        raise ValueError(f"is cut short: BMP declares {length} bytes, the file has {len(data)}")
    if header_length == 12:  # OS/2
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
        packing = 0
    elif len(data) >= 54:
        # Rows run from bottom to top, unless the height is negative.
        width, height, _, bits, packing = struct.unpack("<iiHHI", data[18:34])
    else:
        raise ValueError("is cut short: the BMP header is not complete")
    height = abs(height)
    if bits not in _BMP_BITS.get(packing, ()) or width < 1:
        raise ValueError(f"is damaged: BMP declares {width} columns of {bits} bits, packed by method {packing}")
    # Run lengths may leave out pixels; all else has rows of whole 4 bytes.
    needed = 0 if packing in (1, 2) else height * ((width * bits + 31) // 32 * 4)
    # Some writers leave out the padding of the last row.
    if start + needed > len(data) + 3:
        raise ValueError(f"is cut short: BMP declares {start + needed} bytes, the file has {len(data)}")
    return Header("bmp", (height, width))
