"""PNG files as they are stored: indices of palettes, samples below 8 bits unscaled, nothing half read.

OpenCV decodes fast, but turns palette indices into colours and stretches 1-, 2- and 4-bit samples to 0..255.
So the file is taken apart into its chunks here, and OpenCV gets what remains: header and pixels, with a palette
image declared as gray. Checking each chunk on the way finds damaged files, of which OpenCV may show a part.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segkit.formats.files import read_whole, write_whole
from segkit.formats.image_pixels import exif_orientation, upright
from segkit.formats.limits import RAISE_LIMIT, max_pixels

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
PNG_SAMPLES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
# Filters of a row, of which there are five.
_STORED, _DIFFERENCES = 0, 1


@dataclass(frozen=True, eq=False)
class Png:
    """A decoded PNG file.

    Attributes:
        pixels: (H, W) uint8 or uint16 samples of a gray or palette file, (H, W, 3 or 4) RGB or RGBA otherwise.
        bits: per sample as stored: 1, 2, 4, 8 or 16.
        palette: (K, 3) uint8 RGB of a palette file, else None.
    """

    pixels: np.ndarray
    bits: int
    palette: np.ndarray | None = None


def read_png(path: str | Path) -> Png:
    """Decode a PNG file.

    Raises:
        ValueError: names the file and says whether it is missing, no PNG, damaged, or too large.
    """
    content = read_whole(path)
    try:
        return decode_png(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def decode_png(content: bytes) -> Png:
    """Decode the bytes of a PNG file; errors do not name the file."""
    header, palette, pixels, exif = _chunks(content)
    png = _decode_chunks(header, palette, pixels)
    # As `image_files` does with the image beside it: only one of the two turned would be a wrong mask.
    turned = upright(png.pixels, exif_orientation(exif) if exif else 1)
    return png if turned is png.pixels else replace(png, pixels=np.ascontiguousarray(turned))


def _decode_chunks(header: bytes, palette: bytes, pixels: list[bytes]) -> Png:
    width, height, bits, kind, *rest = struct.unpack(">IIBBBBB", header)
    limit = max_pixels()
    if not 0 < width * height <= limit:
        raise ValueError(f"declares {width} x {height} pixels, expected between 1 and {limit} of them ({RAISE_LIMIT}).")
    try:
        check_packed(header, sum(map(len, pixels)))
    except ValueError as error:
        raise ValueError(f"{error}. Restore the file or leave it out.") from None
    if kind == _PALETTE and not palette:
        raise ValueError("is a palette PNG without a palette. Restore the file or leave it out.")
    if kind in (_GRAY, _PALETTE) and bits == 8 and rest == [0, 0, 0]:
        plain = _decode_plain(pixels, height, width)
        if plain is not None:
            return Png(plain, bits, _colors(palette) if kind == _PALETTE else None)
    # A palette index is stored exactly like a gray sample of the same depth.
    bare = struct.pack(">IIBBBBB", width, height, bits, _GRAY if kind == _PALETTE else kind, *rest)
    decoded = _decode_bare(b"".join((PNG_SIGNATURE, _chunk(b"IHDR", bare), *pixels, _chunk(b"IEND", b""))))
    if decoded is None or decoded.shape[:2] != (height, width):
        raise ValueError("cannot be decoded as PNG. Restore the file or leave it out.")
    if kind in (_GRAY, _PALETTE):
        decoded = decoded[..., 0] if decoded.ndim == 3 else decoded
        if bits < 8:
            decoded = decoded // np.uint8(255 // (2**bits - 1))
    else:
        # OpenCV keeps blue first.
        decoded = decoded[..., [2, 1, 0, 3][: decoded.shape[2]]]
    return Png(decoded, bits, _colors(palette) if kind == _PALETTE else None)


def write_png(path: str | Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write `pixels` whole or not at all; see `encode_png`."""
    write_whole(path, encode_png(pixels, palette))


def encode_png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """PNG bytes of (H, W) uint8 or uint16 samples or (H, W, 3) uint8 RGB.

    Args:
        pixels: indices into `palette` where that is given, then uint8.
        palette: (K, 3) uint8 RGB, K at most 256.
    """
    import cv2

    if pixels.size == 0:
        raise ValueError(f"a mask of {pixels.shape[0]} x {pixels.shape[1]} pixels: there is nothing to write.")
    stored = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(stored))
    assert done
    if palette is None:
        return encoded.tobytes()
    header, _, chunks, _ = _chunks(encoded.tobytes())
    header = header[:9] + bytes([_PALETTE]) + header[10:]
    colors = _chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    return b"".join((PNG_SIGNATURE, _chunk(b"IHDR", header), colors, *chunks, _chunk(b"IEND", b"")))


def walk_chunks(content: bytes, checked: Collection[bytes] | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, byte behind the last) of every chunk of a PNG file, IEND included.

    Args:
        checked: kinds whose check sum is compared; default all.

    Raises:
        ValueError: says what is wrong, without the name of the file: cut short, damaged.
    """
    view, start = memoryview(content), len(PNG_SIGNATURE)
    while start + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + size
        if end > len(content):
            break
        if checked is None or kind in checked:
            (stored,) = struct.unpack_from(">I", content, end - 4)
            if zlib.crc32(view[start + 4 : end - 4]) != stored:
                raise ValueError(f"is damaged: a check sum is wrong at byte {start}")
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise ValueError("is cut short: the end mark of PNG is missing")


def check_packed(header: bytes, packed: int) -> None:
    """Refuse a header whose pixels cannot come from `packed` bytes of data.

    Deflate shrinks to 1/1032 at most (https://zlib.net/zlib_tech.html), so that fewer bytes are a header without its
    pixels; and it hardly grows, so that many more are nothing but work.

    Args:
        header: content of the IHDR chunk.

    Raises:
        ValueError: says what is wrong, without the name of the file.
    """
    width, height, bits, kind = struct.unpack_from(">IIBB", header)
    stored = height * width * bits * PNG_SAMPLES.get(kind, 1) // 8
    if stored > 1040 * packed + 4096:
        raise ValueError(f"declares {height}x{width} pixels, which its {packed} bytes of data cannot hold")
    if packed > 4 * (stored + height) + 65536:
        raise ValueError(f"holds {packed} bytes of data, far more than {height}x{width} pixels take")


def bare_png(content: bytes, kinds: Collection[bytes]) -> bytes:
    """A whole PNG file with chunks of `kinds` alone: text and profiles can unfold to gigabytes."""
    parts = [content[start:end] for kind, start, end in walk_chunks(content, ()) if kind in kinds]
    return b"".join((PNG_SIGNATURE, *parts, _chunk(b"IEND", b"")))


def _chunks(content: bytes) -> tuple[bytes, bytes, list[bytes], bytes]:
    """Header, palette, whole pixel chunks and EXIF block (empty if none) of a PNG file, checked by their CRCs."""
    if not content:
        raise ValueError("is empty. Restore the file or leave it out.")
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("is no PNG file, whatever its name says. Save the mask as PNG.")
    header, palette, pixels, exif = b"", b"", [], b""
    try:
        # Only what the pixels need: gamma, text or an animation's frames would change nothing in a mask.
        for kind, start, end in walk_chunks(content, (b"IHDR", b"PLTE", b"IDAT", b"eXIf")):
            if kind == b"IHDR":
                header = content[start + 8 : end - 4]
            elif kind == b"PLTE":
                palette = content[start + 8 : end - 4]
            elif kind == b"IDAT":
                pixels.append(content[start:end])
            elif kind == b"eXIf":
                exif = content[start + 8 : end - 4]
    except ValueError as error:
        raise ValueError(f"{error}. Restore the file or leave it out.") from None
    if len(header) != 13 or not pixels or len(palette) % 3:
        raise ValueError("is damaged (a part is missing). Restore the file or leave it out.")
    return header, palette, pixels, exif


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _colors(palette: bytes) -> np.ndarray:
    return np.frombuffer(palette, np.uint8).reshape(-1, 3)


def _decode_plain(pixels: list[bytes], height: int, width: int) -> np.ndarray | None:
    """(H, W) uint8 of rows that are stored as they are (palettes) or as differences (what OpenCV writes), else None.

    0.2 ms for a mask of 512 x 1024 pixels, of which libpng takes 1.7 ms: libdeflate inflates 18 times as fast as zlib.
    """
    import imagecodecs

    packed = b"".join(chunk[8:-4] for chunk in pixels)
    length = height * (width + 1)
    try:
        stored = imagecodecs.deflate_decode(packed, out=length)
    except Exception:  # imagecodecs has an error of its own for each codec
        return None  # the other decoder says what is wrong
    if len(stored) != length:
        return None
    rows = np.frombuffer(stored, np.uint8).reshape(height, width + 1)
    filters = rows[:, 0]
    if (filters == _STORED).all():
        return np.ascontiguousarray(rows[:, 1:])
    return imagecodecs.delta_decode(rows[:, 1:], axis=1) if (filters == _DIFFERENCES).all() else None


def _decode_bare(content: bytes) -> np.ndarray | None:
    # Imported here: a format or a model needs no image files.
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
