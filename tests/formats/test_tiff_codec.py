import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from segkit.data.images import read_image
from segkit.formats.codecs import open_codec
from segkit.formats.limits import MAX_PIXELS_VARIABLE
from segkit.formats.mask_format import MaskFormat

STREET = MaskFormat.multiclass(["sky", "road", "car"])
BINARY = MaskFormat.binary("nucleus")
BRATS = MaskFormat.multilabel(["whole", "core", "enhancing"])
CITY = {"name": "tiff", "values": {0: "sky", 7: "road", 300: "car"}, "ignored_values": [65535]}


def scene(seed: int = 0, size_hw: tuple[int, int] = (37, 50)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 7, 300, 65535], np.uint16), size_hw)


EXPECTED = {0: 0, 7: 1, 300: 2, 65535: 255}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "packbits"},
        {"compression": "zstd"},
        {"compression": "lzma"},
        {"compression": "zlib", "tile": (16, 32)},
        {"compression": "zlib", "rowsperstrip": 5},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "zlib", "bigtiff": True},
        {"bigtiff": True},
        {"photometric": "miniswhite"},
        {"photometric": "palette", "colormap": np.zeros((3, 65536), np.uint16)},
    ],
    ids=str,
)
def test_samples_are_read_as_stored_however_they_are_packed(options, tmp_path):
    stored = scene()
    tifffile.imwrite(tmp_path / "a.TIFF", stored, **{"photometric": "minisblack", **options})
    codec = open_codec(CITY, STREET)
    assert codec.stems(tmp_path) == ["a"]
    planes = codec.read(tmp_path, "a")
    np.testing.assert_array_equal(planes[..., 0], np.vectorize(EXPECTED.get)(stored))
    assert codec.files(tmp_path, "a") == [tmp_path / "a.TIFF"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_mask_is_turned_as_the_image_beside_it(suffix, orientation, tmp_path):
    """By Pillow as well: the two are one file here, so that a mask left as stored lies elsewhere than its image."""
    marked = np.zeros((5, 8), np.uint8)
    marked[0, :3] = 255
    image = Image.fromarray(marked)
    image.getexif()[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=image.getexif())
    name = {"tif": "tiff", "png": "index_png"}[suffix]
    planes = open_codec({"name": name, "values": {255: "nucleus"}}, BINARY).read(tmp_path, "a")
    np.testing.assert_array_equal(planes[..., 0] * 255, ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(planes * 255, read_image(tmp_path / f"a.{suffix}", gray=True))


@pytest.mark.parametrize("dtype", ["i1", "i2", "u4", "i4", "f4", "f8"])
def test_whole_numbers_of_other_depths_are_read(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 1], [2, 1]], dtype))
    assert open_codec("tiff", STREET).read(tmp_path, "a")[..., 0].tolist() == [[0, 1], [2, 1]]


def test_one_bit_files_are_1_or_255_as_declared(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[True, False, True]]))
    for spec in ("tiff", {"name": "tiff", "values": {255: "nucleus"}}):
        assert open_codec(spec, BINARY).read(tmp_path, "a").ravel().tolist() == [1, 0, 1]


def test_written_files_are_compressed_have_the_depth_that_values_need_and_no_date(tmp_path):
    planes = np.zeros((200, 300, 1), np.uint8)
    planes[50:90, 40:120] = 2
    for name, spec, depth in (("small", "tiff", 8), ("large", CITY, 16)):
        codec = open_codec(spec, STREET)
        codec.write(tmp_path, name, planes)
        path = tmp_path / f"{name}.tif"
        assert path.stat().st_size < 2000
        with tifffile.TiffFile(path) as file:
            assert (len(file.pages), file.pages[0].bitspersample, file.pages[0].compression) == (1, depth, 8)
            assert not {"DateTime", "Software", "ImageDescription"} & {tag.name for tag in file.pages[0].tags}
        np.testing.assert_array_equal(tifffile.imread(path), planes[..., 0] * np.uint16(1 if depth == 8 else 150))
        np.testing.assert_array_equal(codec.read(tmp_path, name), planes)


def test_a_file_keeps_the_spelling_of_its_suffix(tmp_path):
    for name in ("a.tiff", "b.TIF", "c.Tiff"):
        tifffile.imwrite(tmp_path / name, np.zeros((2, 3), np.uint8))
    codec = open_codec("tiff", STREET)
    for stem in codec.stems(tmp_path):
        codec.write(tmp_path, stem, np.ones((2, 3, 1), np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tiff", "b.TIF", "c.Tiff"]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="are both sample 'a'"):
        codec.stems(tmp_path)


# A page for each class ----------------------------------------------------------------------------------

MARKS = np.random.default_rng(1).integers(0, 2, (3, 5, 7)).astype(np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16)},
        {"photometric": "minisblack", "planarconfig": "separate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [1, 255])
def test_a_page_or_sample_for_each_class(options, value, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MARKS * np.uint8(value), **options)
    planes = open_codec("tiff", BRATS).read(tmp_path, "a")
    np.testing.assert_array_equal(planes, MARKS.transpose(1, 2, 0))


def test_interleaved_samples_and_one_bit_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MARKS.transpose(1, 2, 0) * np.uint8(255), photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", MARKS.astype(bool), photometric="minisblack")
    for stem in ("a", "b"):
        planes = open_codec("tiff", BRATS).read(tmp_path, stem)
        np.testing.assert_array_equal(planes, MARKS.transpose(1, 2, 0))


def test_pages_are_written_with_their_names_and_ignored_class_by_class(tmp_path):
    lungs = MaskFormat.multilabel(["Lunge links", "Gefäße"])
    planes = np.array([[[0, 255], [1, 1], [255, 0]]], np.uint8)
    codec = open_codec({"name": "tiff", "present_values": [9], "ignored_values": [128]}, lungs)
    codec.write(tmp_path, "a", planes)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert [page.asarray().tolist() for page in file.pages] == [[[0, 9, 128]], [[128, 9, 0]]]
        assert [page.tags["PageName"].value for page in file.pages] == list(lungs.names)
    np.testing.assert_array_equal(codec.read(tmp_path, "a"), planes)
    with pytest.raises(ValueError, match="some pixels are ignored"):
        open_codec("tiff", lungs).write(tmp_path, "b", planes)


def test_pages_named_like_another_class_are_refused(tmp_path):
    def write(name, *page_names):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for marks, page_name in zip(MARKS, page_names, strict=True):
                file.write(marks, extratags=[(285, "s", 0, page_name, True)], metadata=None)

    write("a.tif", "core", "whole", "enhancing")
    with pytest.raises(ValueError, match=r"a\.tif: page 1 is named 'core', expected 'whole'.*\['core', 'whole'"):
        open_codec("tiff", BRATS).read(tmp_path, "a")
    write("b.tif", "scan 1", "scan 2", "scan 3")
    assert open_codec("tiff", BRATS).read(tmp_path, "b").shape == (5, 7, 3)


def test_the_number_of_pages_must_be_that_of_the_classes(tmp_path):
    tifffile.imwrite(tmp_path / "two.tif", MARKS[:2], photometric="minisblack")
    tifffile.imwrite(tmp_path / "five.tif", np.repeat(MARKS, 2, axis=0)[:5], photometric="minisblack")
    tifffile.imwrite(tmp_path / "rgb.tif", MARKS.transpose(1, 2, 0).copy(), photometric="rgb")
    with pytest.raises(ValueError, match=r"two\.tif: has 2 pages or samples.*'enhancing'.*`values`"):
        open_codec("tiff", BRATS).read(tmp_path, "two")
    with pytest.raises(ValueError, match=r"five\.tif: has more than 3 pages"):
        open_codec("tiff", BRATS).read(tmp_path, "five")
    with pytest.raises(ValueError, match=r"two\.tif: has more than 1 page"):
        open_codec("tiff", STREET).read(tmp_path, "two")
    with pytest.raises(ValueError, match=r"rgb\.tif: has 3 samples per pixel, expected one.*`color_png`"):
        open_codec("tiff", STREET).read(tmp_path, "rgb")


def test_pages_of_different_sizes_are_refused_and_overviews_passed_over(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for marks in (MARKS[0], MARKS[1, :2], MARKS[2]):
            file.write(marks, metadata=None)
    with pytest.raises(ValueError, match=r"a\.tif: has pages of 2 x 7 and 5 x 7"):
        open_codec("tiff", BRATS).read(tmp_path, "a")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(MARKS[0], metadata=None)
        file.write(MARKS[0, ::2, ::2].copy(), metadata=None, subfiletype=1)
    planes = open_codec("tiff", BINARY).read(tmp_path, "b")
    np.testing.assert_array_equal(planes[..., 0], MARKS[0])


def test_regions_in_a_tiff_file(tmp_path):
    codec = open_codec({"name": "tiff", "values": {1: ["whole", "core"], 2: "whole", 4: list(BRATS.names)}}, BRATS)
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 1, 2, 4]], np.uint8))
    planes = codec.read(tmp_path, "a")
    assert planes[0].tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]
    codec.write(tmp_path, "b", planes)
    assert tifffile.imread(tmp_path / "b.tif").tolist() == [[0, 1, 2, 4]]


def test_present_values_belong_to_pages():
    with pytest.raises(ValueError, match=r"`present_values` is for classes that may overlap.*`values`"):
        open_codec({"name": "tiff", "present_values": [255]}, BINARY)


# Damaged files ------------------------------------------------------------------------------------------


def damaged() -> dict[str, tuple[bytes, str]]:
    def encoded(**options):
        import io

        buffer = io.BytesIO()
        tifffile.imwrite(buffer, scene(2, (40, 60)), metadata=None, **options)
        return buffer.getvalue()

    plain, packed = encoded(), encoded(compression="zlib")
    width = plain.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in plain else None
    assert width is not None
    huge = plain[: width + 8] + struct.pack("<I", 2**31 - 1) + plain[width + 12 :]
    return {
        "empty": (b"", "is no TIFF file"),
        "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is no TIFF file"),
        "header_only": (plain[:8], "cannot be decoded|holds no picture"),
        "no_end": (plain[:-1], "cut short"),
        "half": (packed[: len(packed) // 2], "cut short|cannot be decoded"),
        "flipped": (packed[:-400] + bytes(b ^ 255 for b in packed[-400:-380]) + packed[-380:], "cannot be decoded"),
        "huge": (huge, "declares 85899345880 pixels"),
    }


@pytest.mark.parametrize("damage", damaged())
def test_a_damaged_file_is_one_error_that_names_it(damage, tmp_path, capfd):
    content, said = damaged()[damage]
    (tmp_path / "bad.tif").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.tif: .*({said})"):
        open_codec(CITY, STREET).read(tmp_path, "bad")
    assert capfd.readouterr().err == ""


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", scene())
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1849")
    with pytest.raises(ValueError, match=r"a\.tif: declares 1850 pixels, expected between 1 and 1849"):
        open_codec(CITY, STREET).read(tmp_path, "a")


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_pages_that_lead_in_a_circle_are_refused(bigtiff, byteorder, tmp_path):
    first, count, entry, link = (8, "Q", 20, "Q") if bigtiff else (4, "H", 12, "I")
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=bigtiff, byteorder=byteorder) as file:
        for marks in MARKS:
            file.write(marks, metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (second,) = struct.unpack_from(byteorder + link, content, first)
    for _ in range(2):  # the third page leads back to the first
        (entries,) = struct.unpack_from(byteorder + count, content, second)
        place = second + struct.calcsize(count) + entry * entries
        (second,) = struct.unpack_from(byteorder + link, content, place)
    (entries,) = struct.unpack_from(byteorder + count, content, second)
    place = second + struct.calcsize(count) + entry * entries
    content[place : place + struct.calcsize(link)] = content[first : first + struct.calcsize(link)]
    (tmp_path / "bad.tif").write_bytes(content)
    assert open_codec("tiff", BRATS).read(tmp_path, "a").shape == (5, 7, 3)
    for spec, format in (("tiff", BRATS), ("threshold", BINARY)):
        with pytest.raises(ValueError, match=r"bad\.tif: .*its pages lead in a circle"):
            open_codec(spec, format).read(tmp_path, "bad")


def test_pictures_without_all_their_parts_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 60), np.uint8), rowsperstrip=40, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["RowsPerStrip"].overwrite(10)
    for spec, format in (("tiff", STREET), ("threshold", BINARY)):
        with pytest.raises(ValueError, match=r"a\.tif: .*it has 1 of 4 parts"):
            open_codec(spec, format).read(tmp_path, "a")
