"""Image files as they come, against what Pillow decodes, and files that must not be decoded at all."""

import io
import os
import struct
import unicodedata
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from segkit.data.images import find_images, read_image
from segkit.formats.image_files import read_image_file
from segkit.formats.png_files import PNG_SIGNATURE

ROWS, COLUMNS = np.mgrid[:40, :64]
PICTURE = np.stack([3 * ROWS, 2 * COLUMNS, 200 - ROWS - COLUMNS], axis=2).astype(np.uint8)
DEEP = PICTURE.astype(np.uint16) * 300


def encoded(kind, image=PICTURE, mode=None, **options):
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    (picture.quantize(7) if mode == "P" else picture if mode is None else picture.convert(mode)).save(
        file, kind, **options
    )
    return file.getvalue()


def read(tmp_path, content, **options):
    (tmp_path / "a.bin").write_bytes(content)
    return read_image_file(tmp_path / "a.bin", **options)


def by_pillow(content, mode="RGB"):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert(mode))


def exif(orientation):
    note = Image.Exif()
    note[274] = orientation
    return note


# Kinds and depths --------------------------------------------------------------------------------------

MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "gif": ("1", "L", "P", "RGB"),
    "ppm": ("1", "L", "RGB"),
    "webp": ("L", "P", "RGB", "RGBA"),
    "jpeg2000": ("L", "LA", "RGB", "RGBA"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
    "jpeg": ("1", "L", "RGB", "CMYK", "YCbCr"),
}


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k, modes in MODES.items() for m in modes])
def test_8_bit_files_are_the_colours_that_pillow_decodes(tmp_path, kind, mode):
    content = encoded(kind, mode=mode, **({"lossless": True} if kind == "webp" else {}))
    image, expected = read(tmp_path, content), by_pillow(content)
    assert (image.shape, image.dtype) == (PICTURE.shape, np.uint8)
    # Two builds of libjpeg and two formulas for ink.
    assert np.abs(image.astype(int) - expected).max() <= (12 if kind == "jpeg" else 0)
    if mode in ("1", "L"):
        assert np.abs(read(tmp_path, content, gray=True)[..., 0].astype(int) - expected[..., 0]).max() <= 1


@pytest.mark.parametrize(
    ("suffix", "bands"), [(s, b) for s in (".png", ".jp2", ".tif") for b in (1, 3)] + [(".pgm", 1), (".ppm", 3)]
)
def test_16_bits_keep_their_values_in_every_kind(tmp_path, suffix, bands):
    stored = DEEP[..., :bands]
    content = cv2.imencode(suffix, np.ascontiguousarray(stored[..., ::-1]))[1].tobytes()
    for gray in (False, True):
        np.testing.assert_array_equal(read(tmp_path, content, gray=gray), stored)


def test_16_bit_alpha_is_a_band_like_any_other(tmp_path):
    for bands in (DEEP[..., :2], np.dstack([DEEP, DEEP[..., 1]])):
        np.testing.assert_array_equal(read(tmp_path, imagecodecs.png_encode(np.ascontiguousarray(bands))), bands)


def test_the_orientation_of_a_16_bit_png_is_applied(tmp_path):
    # 6: the first column of the picture lies in the last row of the file.
    content = encoded("png", np.rot90(DEEP[..., 0]).copy(), exif=exif(6))
    np.testing.assert_array_equal(read(tmp_path, content)[..., 0], DEEP[..., 0])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_orientation_of_a_jpeg_is_applied_in_every_mode(tmp_path, mode, orientation):
    turns = {3: 2, 6: 1, 8: 3}[orientation]
    content = encoded("jpeg", np.rot90(PICTURE, turns).copy(), mode=mode, quality=95, exif=exif(orientation))
    for gray in (False, True):
        expected = by_pillow(encoded("png", mode=mode if mode == "L" else None), "L" if gray else "RGB").astype(int)
        assert np.abs(np.squeeze(read(tmp_path, content, gray=gray)) - expected).mean() < 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 16000)])
@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "gif", "webp", "jpeg", "ppm", "jpeg2000"])
def test_strips(tmp_path, kind, shape):
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    content = encoded(kind, noise, **({"lossless": True} if kind == "webp" else {}))
    difference = read(tmp_path, content).astype(int) - by_pillow(content)
    assert np.abs(difference).max() <= (12 if kind == "jpeg" else 0)


def bmp(bits, rows, size_hw, packing=0, table=b"", header=40, down=False):
    height, width = size_hw
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        height = -height if down else height
        head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, packing, len(rows), 0, 0, 0, 0)
        head += bytes(max(0, header - 40 - len(table)) if packing == 3 else 0)
    start = 14 + len(head) + len(table)
    # Masks of colours are part of long headers and follow short ones.
    head = head[:40] + table + head[40:] if packing == 3 else head + table
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + rows


def padded(rows):
    return b"".join(row + bytes(-len(row) % 4) for row in rows)


COLOURS = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)


@pytest.mark.parametrize("header", [12, 40])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_of_indices(tmp_path, bits, header):
    indices = np.random.default_rng(bits).integers(0, 2**bits, (5, 7)).astype(np.uint8)
    digits = ["".join(f"{i:0{bits}b}" for i in row) for row in indices[::-1]]
    rows = padded(int(d + "0" * (-len(d) % 8), 2).to_bytes((len(d) + 7) // 8, "big") for d in digits)
    end = b"" if header == 12 else b"\0"
    table = b"".join(bytes(c[::-1]) + end for c in COLOURS[: 2**bits])
    np.testing.assert_array_equal(read(tmp_path, bmp(bits, rows, (5, 7), 0, table, header)), COLOURS[indices])


@pytest.mark.parametrize("down", [False, True])
def test_bmp_of_colours_from_either_end(tmp_path, down):
    stored = PICTURE[:5, :7] if down else PICTURE[4::-1, :7]
    rows = padded(row[:, ::-1].tobytes() for row in stored)
    np.testing.assert_array_equal(read(tmp_path, bmp(24, rows, (5, 7), down=down)), PICTURE[:5, :7])
    rows = np.dstack([stored[..., ::-1], stored[..., 0]]).tobytes()
    np.testing.assert_array_equal(read(tmp_path, bmp(32, rows, (5, 7), down=down)), PICTURE[:5, :7])


@pytest.mark.parametrize(("packing", "bits"), [(0, (5, 5, 5)), (3, (5, 6, 5))])
def test_bmp_of_16_bits(tmp_path, packing, bits):
    values = np.random.default_rng(0).integers(0, 2 ** sum(bits), (5, 7)).astype("<u2")
    places = (bits[1] + bits[2], bits[2], 0)
    expected = [(values >> p & (2**b - 1)) * 255 / (2**b - 1) for p, b in zip(places, bits, strict=True)]
    masks = [(2**b - 1) << p for p, b in zip(places, bits, strict=True)]
    table = struct.pack("<III", *masks) if packing == 3 else b""
    image = read(tmp_path, bmp(16, padded(row.tobytes() for row in values[::-1]), (5, 7), packing, table))
    # OpenCV fills the low bits with 0: white is 248.
    assert np.abs(image - np.stack(expected, 2)).max() < 8


def test_bmp_of_runs(tmp_path):
    table = b"".join(bytes(c[::-1]) + b"\0" for c in COLOURS)
    # From below: 5 times index 9 in one row; 3 literal indices (padded to 4 bytes) and 2 times index 7 above it.
    runs = b"\5\x09\0\0" + b"\0\3\1\2\3\0" + b"\2\7\0\0" + b"\0\1"
    expected = COLOURS[[[1, 2, 3, 7, 7], [9] * 5]]
    np.testing.assert_array_equal(read(tmp_path, bmp(8, runs, (2, 5), 1, table)), expected)
    nibbles = b"\5\x98\0\0" + b"\5\x12\0\0" + b"\0\1"  # two indices that take turns
    expected = COLOURS[[[1, 2, 1, 2, 1], [9, 8, 9, 8, 9]]]
    np.testing.assert_array_equal(read(tmp_path, bmp(4, nibbles, (2, 5), 2, table[:64])), expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P1 3 2\n101010\n", [[0, 255, 0], [255, 0, 255]]),
        (b"P4\n# by hand\n3 2\n\xa0\x40", [[0, 255, 0], [255, 0, 255]]),
        (b"P2\n# 9 9 9\n3 2 15\n0 5 15 1 2 3", [[0, 85, 255], [17, 34, 51]]),
        (b"P5 # a\n3 # b\n2\n15\n\0\5\x0f\1\2\3", [[0, 85, 255], [17, 34, 51]]),
        (b"P2 3 2 1000\n0 5 15 1 2 1000\n", [[0, 5, 15], [1, 2, 1000]]),
        (b"P3 1 2 255\n1 2 3 4 5 6\n", [[[1, 2, 3]], [[4, 5, 6]]]),
        (b"P6 1 1 65535\n" + struct.pack(">3H", 1, 2, 60000), [[[1, 2, 60000]]]),
        (b"Pf\n2 1\n-2.5\n" + struct.pack("<2f", 1.5, -2), [[1.5, -2]]),
        (b"Pf\n2 1\n1\n" + struct.pack(">2f", 1.5, -2), [[1.5, -2]]),
        (b"PF\n1 2\n-1.0\n" + struct.pack("<6f", *range(6)), [[[3, 4, 5]], [[0, 1, 2]]]),
    ],
)
def test_pnm_by_hand(tmp_path, content, expected):
    np.testing.assert_array_equal(
        np.squeeze(read(tmp_path, content, gray=np.ndim(expected) == 2)), np.squeeze(expected)
    )


def test_a_transparent_gif_keeps_the_colours_below(tmp_path):
    content = encoded("gif", mode="P", transparency=0, interlace=1)
    np.testing.assert_array_equal(read(tmp_path, content), by_pillow(content))


@pytest.mark.parametrize("bands", [2, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_2000_of_many_bands(tmp_path, bands, dtype):
    stored = np.random.default_rng(0).integers(0, 255, (20, 30, bands)).astype(dtype)
    image = read(tmp_path, imagecodecs.jpeg2k_encode(stored, level=0))
    if bands == 2 and dtype == np.uint8:  # gray and alpha
        stored = np.repeat(stored[..., :1], 3, axis=2)
    np.testing.assert_array_equal(image, stored)


def test_colours_of_printers_in_jpeg_2000_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.bin: the file has the colours of a printer"):
        read(tmp_path, encoded("jpeg2000", mode="CMYK"))


# Names and folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Straße 7 (grün).PNG", "a b  c.JpG", "日本.TIFF", "100%_x#1.WebP"])
def test_names_as_people_give_them(tmp_path, name, form):
    name = unicodedata.normalize(form, name)
    Image.fromarray(PICTURE).save(tmp_path / name)
    (ref,) = find_images(tmp_path).values()
    assert read_image(ref).shape == PICTURE.shape
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        read_image(ref)
    assert name in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz", ".gif"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.mkdir()
    with pytest.raises(ValueError, match=rf"a\{suffix}: "):
        read_image(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"a\{suffix}: "):
        read_image(path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"a\{suffix}: "):
        read_image(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"a\{suffix}: "):
        read_image(path)


# Files that are refused --------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size_hw, packed, bits=8, kind=2, *more):
    header = struct.pack(">IIBBBBB", size_hw[1], size_hw[0], bits, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"".join((PNG_SIGNATURE, *chunks))


HUGE = [
    ("png", png((9000, 9000), zlib.compress(bytes(1000)))),
    ("jpeg", encoded("jpeg").replace(struct.pack(">HH", 40, 64), struct.pack(">HH", 9000, 9000))),
    ("bmp", encoded("bmp").replace(struct.pack("<II", 64, 40), struct.pack("<II", 9000, 9000))),
    ("gif", encoded("gif", mode="P").replace(struct.pack("<HH", 64, 40), struct.pack("<HH", 9000, 9000))),
    ("pgm", b"P5 9000 9000 255\n" + bytes(100)),
    ("ppm", b"P3 9000 9000 255\n" + b"1 " * 100),
    ("jp2", encoded("jpeg2000").replace(struct.pack(">II", 64, 40), struct.pack(">II", 9000, 9000))),
    ("webp", encoded("webp").replace(struct.pack("<HH", 64, 40), struct.pack("<HH", 9000, 9000))),
]


@pytest.mark.parametrize(("kind", "content"), HUGE, ids=[kind for kind, _ in HUGE])
def test_a_header_that_asks_for_81_megapixels_is_refused_before_decoding(tmp_path, monkeypatch, kind, content):
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "80000000")
    for decoder in ("jpeg8_decode", "gif_decode", "jpeg2k_decode"):
        monkeypatch.setattr(imagecodecs, decoder, None)
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ValueError, match=r"a\.bin: the file (declares 9000x9000 pixels|is cut short: 9000x9000|.*BMP)"):
        read(tmp_path, content)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "ppm", "jpeg2000", "webp", "tiff"])
def test_the_number_of_pixels_can_be_configured(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 64 - 1))
    content = encoded(kind)
    with pytest.raises(ValueError, match=r"a\.bin: the file declares 40x64 pixels, expected 1 to 2559"):
        read(tmp_path, content)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 64))
    assert read(tmp_path, content).shape == PICTURE.shape


def test_a_png_whose_data_cannot_fill_it_or_goes_on_behind_it_is_refused(tmp_path):
    assert read(tmp_path, png((1000, 900), zlib.compress(bytes(900 * 1000 * 3 + 1000), 9))).max() == 0
    with pytest.raises(ValueError, match=r"declares 30000x30000 pixels, which its .* bytes of data cannot hold"):
        read(tmp_path, png((30000, 30000), zlib.compress(bytes(1000))))
    # 300 KB would unfold to 300 MB.
    with pytest.raises(ValueError, match="far more than 10x10 pixels take"):
        read(tmp_path, png((10, 10), zlib.compress(bytes(310)) + bytes(300_000)))


def test_text_in_a_png_is_not_unfolded(tmp_path, monkeypatch):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(7_000_000), 9))
    content = png((4, 5), zlib.compress(bytes(4 * 16)), 8, 2, *[text] * 20)
    decode, seen = cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda data, flag: seen.append(data.size) or decode(data, flag))
    assert read(tmp_path, content).shape == (4, 5, 3)
    assert seen[0] < 200 < len(content)


def test_a_jpeg_that_goes_over_its_pixels_hundreds_of_times_is_refused(tmp_path):
    content = encoded("jpeg", progressive=True)
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    assert read(tmp_path, content[:-2] + scan * 5 + b"\xff\xd9").shape == PICTURE.shape
    with pytest.raises(ValueError, match=r"goes over its pixels 3[0-9]{2} times"):
        read(tmp_path, content[:-2] + scan * 300 + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_are_refused(tmp_path, kind):
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    with pytest.raises(ValueError, match=r"(holds 2 pictures \(GIF\)|is animated \(WebP\)), expected one"):
        read(tmp_path, encoded(kind, frames[0], save_all=True, append_images=frames[1:]))


def test_of_an_animated_png_the_still_picture_is_read(tmp_path):
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    content = encoded("png", frames[0], save_all=True, append_images=frames[1:])
    assert b"fdAT" in content
    np.testing.assert_array_equal(read(tmp_path, content), PICTURE)


@pytest.mark.parametrize("size", [(-(2**31), 5), (0, 5), (5, 0), (5, -5), (5, 2**31 - 1), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("packing", [0, 1])
def test_bmp_of_impossible_sizes(tmp_path, size, packing):
    content = bytearray(bmp(8, bytes(100), (5, 7), packing, bytes(1024)))
    content[18:26] = struct.pack("<ii", size[1], size[0])
    with pytest.raises(ValueError, match=r"a\.bin: the file (declares|is damaged|is cut short)"):
        read(tmp_path, bytes(content))


def test_gif_frames_beside_the_picture_are_refused(tmp_path):
    content = bytearray(encoded("gif", mode="P"))
    start = content.index(b",\0\0\0\0" + struct.pack("<HH", 64, 40))
    content[start + 1] = 200
    with pytest.raises(ValueError, match="40x64 pixels at row 0, column 200 of 40x64"):
        read(tmp_path, bytes(content))


@pytest.mark.parametrize("kind", ["gif", "ppm", "jpeg2000"])
def test_every_cut_is_noticed(tmp_path, kind):
    content = encoded(kind, PICTURE[:17, :11])
    for length in (*range(8, 60), len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match=r"a\.bin: the file (is cut short|is damaged|cannot be decoded|declares)"):
            read(tmp_path, content[:length])


def test_avif_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"AVIF, HEIC and videos are not read\. .*save it as PNG"):
        read(tmp_path, imagecodecs.avif_encode(PICTURE))


def test_a_picture_inside_a_tiff_larger_than_its_place_is_refused(tmp_path):
    # A JPEG of 9 megapixels as the only strip of 40 x 64 pixels: it would be decoded before it is cut.
    large = encoded("jpeg", np.zeros((3000, 3000, 3), np.uint8))
    file = io.BytesIO()
    tifffile.imwrite(file, PICTURE, photometric="rgb", compression="jpeg", rowsperstrip=40)
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        counts = tiff.pages[0].tags["StripByteCounts"].valueoffset, tiff.pages[0].tags["StripOffsets"].valueoffset
    content = bytearray(file.getvalue())
    for position, value in zip(counts, (len(large), len(content)), strict=True):
        content[position : position + 4] = struct.pack("<I", value)
    with pytest.raises(ValueError, match=r"holds a part of 3000x3000 pixels, expected at most 40x64"):
        read(tmp_path, bytes(content) + large)


def test_a_tiff_whose_bytes_cannot_hold_its_pixels_is_refused(tmp_path):
    file = io.BytesIO()
    tifffile.imwrite(file, PICTURE, photometric="rgb", compression="zlib", rowsperstrip=40)
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        places = [tiff.pages[0].tags[name].valueoffset for name in ("ImageLength", "RowsPerStrip")]
    content = bytearray(file.getvalue())
    for position in places:
        content[position : position + 2] = struct.pack("<H", 60000)
    with pytest.raises(ValueError, match=r"declares 60000x64 pixels of 3 bands, which its .* cannot hold"):
        read(tmp_path, bytes(content))
