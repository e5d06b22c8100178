import io

import numpy as np
import pytest
from PIL import Image

from segkit.formats.image_checks import Header, check_encoded, is_tiff

PICTURE = np.random.default_rng(0).integers(0, 255, (17, 300, 3), np.uint8)


def encode(kind, image=PICTURE, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("bmp", {}),
        ("jpeg", {}),
        ("jpeg", {"progressive": True}),
        ("webp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"exif": Image.Exif()}),
    ],
)
def test_size_is_read_from_the_header(kind, options):
    header = check_encoded(encode(kind, **options))
    assert (header.kind, header.size_hw, header.depth, header.orientation) == (kind, (17, 300), 8, 1)
    assert header.bands == (3 if kind in ("jpeg", "png") else None)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_bands_of_a_jpeg(mode):
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, "jpeg")
    assert check_encoded(file.getvalue()).bands == len(mode)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_orientation_of_a_jpeg(order, orientation):
    exif = Image.Exif()
    exif.endian = {"II": "<", "MM": ">"}[order]
    exif[0x010F], exif[0x0112], exif[0x0131] = "maker", orientation, "software"
    data = encode("jpeg", exif=exif)
    assert f"Exif\0\0{order}".encode() in data
    assert check_encoded(data).orientation == orientation


def test_an_exif_block_that_cannot_be_read_is_not_upright():
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encode("jpeg", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    assert check_encoded(data[: start + 4] + b"\xff\xff\xff\xff" + data[start + 8 :]).orientation == 0
    assert check_encoded(data[:start] + b"XX" + data[start + 2 :]).orientation == 0


def test_an_extended_webp_has_its_size_elsewhere():
    rgba = np.dstack([PICTURE, np.arange(300, dtype=np.uint8)[None].repeat(17, 0)])
    data = encode("webp", rgba)
    assert data[12:16] == b"VP8X"
    assert check_encoded(data).size_hw == (17, 300)


def test_bytes_behind_the_end_do_no_harm():
    for kind in ("png", "jpeg", "webp", "bmp"):
        assert check_encoded(encode(kind) + b"appended").kind == kind


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_every_cut_is_noticed(kind):
    data = encode(kind)
    whole = len(data) - (2 if kind == "bmp" else 0)
    for length in (*range(4, 60), len(data) // 2, len(data) - 3, whole - 1):
        with pytest.raises(ValueError, match=r"cut short|cannot be decoded"):
            check_encoded(data[:length])


def test_pnm_says_its_size_depth_and_bands():
    assert check_encoded(b"P5\n3 1\n4095\n" + bytes(6)) == Header("pnm", (1, 3), 16, 1)


def test_16_bit_png():
    assert check_encoded(encode("png", PICTURE[..., 0].astype(np.uint16))).depth == 16


def test_tiff_is_told_by_its_first_bytes():
    assert is_tiff(encode("tiff"))
    assert not is_tiff(encode("png"))
