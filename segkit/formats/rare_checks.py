"""What GIF, PNM and JPEG 2000 files say about themselves; see `image_checks`.

Sources: GIF89a specification (CompuServe 1990); netpbm's pages on PBM, PGM, PPM and PFM; ISO/IEC 15444-1, annexes A
and I.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

GIF = (b"GIF87a", b"GIF89a")
_JP2_BOX = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
JPEG_2000 = (_JP2_BOX, _CODESTREAM)
# A code of 12 bits stands for at most 3840 pixels.
_GIF_PIXELS_PER_BYTE = 2560
# P1 to P6 of whole numbers, Pf and PF of floats; a comment runs from # to the end of its line.
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P([1-6fF])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})(?:" + _GAP + rb"(-?[0-9.]{1,20}))?\s")
_PNM_BANDS = {b"1": 1, b"2": 1, b"3": 3, b"4": 1, b"5": 1, b"6": 3, b"f": 1, b"F": 3}
_CMYK = 12


def check_gif(data: bytes) -> tuple[int, int]:
    """(height, width) of a GIF of one picture."""
    width, height = struct.unpack_from("<HH", data.ljust(10, b"\0"), 6)
    frames = 0
    for kind, start, end in gif_blocks(data):
        if kind != 0x2C:
            continue
        frames += 1
        left, top, columns, rows = struct.unpack_from("<4H", data, start + 1)
        if left + columns > width or top + rows > height or not columns * rows:
            raise ValueError(f"is damaged: {rows}x{columns} pixels at row {top}, column {left} of {height}x{width}")
        if columns * rows > _GIF_PIXELS_PER_BYTE * (end - start):
            raise ValueError(f"declares {rows}x{columns} pixels, which its {len(data)} bytes cannot hold")
    if frames != 1:
        raise ValueError(f"holds {frames} pictures (GIF), expected one: save the frame that is meant")
    return height, width


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(first byte, start, end) of each block of a GIF up to its end mark: 0x2C is a picture, 0x21 an extension."""
    try:
        position = 13 + _gif_table(data[10])
        while data[position] != 0x3B:
            kind, start = data[position], position
            if kind == 0x2C:
                position += 11 + _gif_table(data[position + 9])
            elif kind == 0x21:
                position += 2
            else:
                raise ValueError(f"is damaged: no block of a GIF starts at byte {position}")
            while data[position]:
                position += 1 + data[position]
            position += 1
            yield kind, start, position
    except IndexError:
        raise ValueError("is cut short: the end mark of GIF is missing") from None


def opaque_gif(data: bytes) -> bytes:
    """The same GIF without transparency: a transparent pixel keeps the colour that is stored for it."""
    opaque = bytearray(data)
    for kind, start, _ in gif_blocks(data):
        if kind == 0x21 and data[start + 1] == 0xF9:
            opaque[start + 3] &= 0xFE
    return bytes(opaque)


def _gif_table(flags: int) -> int:
    """Bytes of the table of colours that `flags` announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def is_pnm(data: bytes) -> bool:
    """Whether `data` starts like a PBM, PGM, PPM or PFM file."""
    return data[:1] == b"P" and data[1:2] in _PNM_BANDS and (data[2:3].isspace() or data[2:3] == b"#")


def check_pnm(data: bytes) -> tuple[tuple[int, int], int, int]:
    """((height, width), depth, bands) of a PNM file."""
    (height, width), kind, largest, raster = _pnm_header(data)
    depth = 32 if kind in b"fF" else 8 if largest <= 255 else 16
    bands = _PNM_BANDS[kind]
    needed = {
        b"1": height * width,
        b"2": 2 * height * width - 1,
        b"3": 2 * 3 * height * width - 1,
        b"4": height * ((width + 7) // 8),
    }.get(kind, height * width * bands * depth // 8)
    if needed > len(data) - raster:
        raise ValueError(
            f"is cut short: {height}x{width} pixels take {needed} bytes, the file has {len(data) - raster}"
        )
    return (height, width), depth, bands


def plain_pnm(data: bytes) -> bytes:
    """The same picture with a header that no two readers take differently: no comments, 8 bits up to 255, scale 1."""
    (height, width), kind, largest, raster = _pnm_header(data)
    pixels = data[raster:]
    if kind in b"fF":
        largest = 1 if largest > 0 else -1  # the sign says in which order bytes lie
    elif kind in b"56" and largest < 255:
        pixels = pixels.translate(bytes(min(255, round(255 * value / largest)) for value in range(256)))
        largest = 255
    scale = b"" if kind in b"14" else b"%d\n" % largest
    # OpenCV wants a blank behind the last number of a text.
    return b"P%c\n%d %d\n%s" % (kind, width, height, scale) + pixels + b"\n" * (kind in b"123")


def _pnm_header(data: bytes) -> tuple[tuple[int, int], bytes, float, int]:
    """((height, width), kind, largest value or scale, first byte of the pixels)."""
    match = _PNM.match(data)
    kind, width, height = (b"", b"0", b"0") if match is None else match.group(1, 2, 3)
    if match is None:
        raise ValueError("is damaged: no header of PNM")
    if kind in b"14":
        # One blank ends the header; what looks like a largest value belongs to the pixels.
        return (int(height), int(width)), kind, 1, match.end(3) + 1
    try:
        largest = float(match.group(4)) if kind in b"fF" else int(match.group(4))
    except (TypeError, ValueError):
        raise ValueError("is damaged: no header of PNM") from None
    if kind not in b"fF" and not 0 < largest < 65536:
        raise ValueError(f"is damaged: the largest value is {largest}, PNM allows 1 to 65535")
    return (int(height), int(width)), kind, largest, match.end()


def check_jpeg_2000(data: bytes) -> tuple[tuple[int, int], int, int]:
    """((height, width), depth, bands) of a JPEG 2000 file or bare codestream."""
    start, end = _find_codestream(data) if data.startswith(_JP2_BOX) else (0, len(data))
    if end - start < 42 or data[start : start + 4] != _CODESTREAM:
        raise ValueError("is cut short: the header of JPEG 2000 is not complete")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (bands,) = struct.unpack_from(">H", data, start + 40)
    depths = data[start + 42 : start + 42 + 3 * bands : 3]
    if right <= left or bottom <= top or not depths:
        raise ValueError("is damaged: JPEG 2000 declares no pixels")
    # FF is never followed by more than 8F inside the picture's data, so FF D9 is the end mark.
    if data.rfind(b"\xff\xd9", start, end) < 0:
        raise ValueError("is cut short: the end mark of JPEG 2000 is missing")
    return (bottom - top, right - left), 1 + max(depth & 0x7F for depth in depths), bands


def _find_codestream(data: bytes) -> tuple[int, int]:
    """(start, end) of the codestream in the boxes of a JP2 file."""
    position = 0
    while position + 16 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        end = position + length if length else len(data)
        if end > len(data) or (length and length < head):
            break
        if kind == b"jp2h" and _is_cmyk(data[position:end]):
            raise ValueError("has the colours of a printer (CMYK), expected gray or RGB")
        if kind == b"jp2c":
            return position + head, end
        position = end
    raise ValueError("is cut short: the picture of JPEG 2000 is missing")


def _is_cmyk(header: bytes) -> bool:
    """Whether the first colour box of a JP2 header names CMYK (method 1, number 12)."""
    colour = header.find(b"colr")
    return header[colour + 4 : colour + 5] == b"\1" and header[colour + 7 : colour + 11] == struct.pack(">I", _CMYK)
