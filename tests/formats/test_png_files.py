"""PNG files of every filter and depth, against an encoder written from the specification."""

import struct
import zlib

import numpy as np
import pytest

from segkit.formats.png_files import PNG_SIGNATURE, decode_png, encode_png

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (13, 21)).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(pixels, filters):
    """Rows of 8-bit samples behind their filter byte (PNG specification, section 9.2: none, sub, up)."""
    rows = []
    for number, row in enumerate(pixels.astype(int)):
        left = np.concatenate([[0], row[:-1]])
        above = pixels[number - 1] if number else np.zeros_like(row)
        change = {0: row, 1: row - left, 2: row - above}[filters[number % len(filters)]]
        rows.append(bytes([filters[number % len(filters)]]) + (change % 256).astype(np.uint8).tobytes())
    return b"".join(rows)


def png_of(pixels, filters=(0,), kind=0, parts=1, raw=None):
    packed = zlib.compress(filtered(pixels, filters) if raw is None else raw)
    step = -(-len(packed) // parts)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 0)
    palette = [chunk(b"PLTE", bytes(range(255)) + bytes(513))] if kind == 3 else []
    data = [chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step)]
    return b"".join([PNG_SIGNATURE, chunk(b"IHDR", header), *palette, *data, chunk(b"IEND", b"")])


@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (0, 1), (1, 2, 0)])
@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("parts", [1, 4])
def test_every_filter_gives_the_samples_as_stored(filters, kind, parts):
    png = decode_png(png_of(PIXELS, filters, kind, parts))
    np.testing.assert_array_equal(png.pixels, PIXELS)
    assert png.pixels.flags.c_contiguous
    assert (png.bits, png.palette is None) == (8, kind == 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("filters", [(0,), (1,)])
def test_thin_masks(shape, filters):
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(decode_png(png_of(pixels, filters)).pixels, pixels)
    np.testing.assert_array_equal(decode_png(encode_png(pixels)).pixels, pixels)


def test_pixels_that_are_too_few_are_no_picture():
    with pytest.raises(ValueError, match="cannot be decoded as PNG"):
        decode_png(png_of(PIXELS, raw=filtered(PIXELS, (0,))[:-60]))


def test_a_damaged_stream_is_no_picture():
    data = bytearray(png_of(PIXELS))
    start = data.index(b"IDAT") + 4
    size = struct.unpack(">I", data[start - 8 : start - 4])[0]
    data[start : start + 2] = b"\0\0"
    data[start + size : start + size + 4] = struct.pack(">I", zlib.crc32(data[start - 4 : start + size]))
    with pytest.raises(ValueError, match="cannot be decoded as PNG"):
        decode_png(bytes(data))
