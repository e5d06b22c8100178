import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import write_png

POLYP = MaskFormat.binary("polyp")
FORMATS = [POLYP, MaskFormat.binary("polyp", "softmax"), MaskFormat.multiclass(["polyp", "background"], "sigmoid")]


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:48, :61]
    return (rows - 20) ** 2 + (columns - 33) ** 2 < 200


def gray() -> np.ndarray:
    return disc() * np.uint8(255)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".pgm", ".ppm", ".webp", ".jpg", ".JPEG", ".gif", ".tif", ".TIFF"])
@pytest.mark.parametrize("format", FORMATS, ids=["sigmoid", "softmax", "one_vs_rest"])
def test_masks_of_every_kind_of_file(suffix, format, tmp_path):
    colours = np.repeat(gray()[..., None], 3, axis=2)
    if suffix == ".gif":
        content = imagecodecs.gif_encode(gray())
    else:
        flags = [cv2.IMWRITE_JPEG_QUALITY, 60, cv2.IMWRITE_WEBP_QUALITY, 60]
        content = cv2.imencode(suffix.lower(), gray() if suffix == ".pgm" else colours, flags)[1].tobytes()
    (tmp_path / f"a b{suffix}").write_bytes(content)
    codec = open_codec("threshold", format)
    assert codec.stems(tmp_path) == ["a b"]
    assert codec.files(tmp_path, "a b") == [tmp_path / f"a b{suffix}"]
    plane = codec.read(tmp_path, "a b")[..., 0]
    assert plane.dtype == format.dtype
    # compression moves the edge by a pixel here and there, and nothing else
    wrong = (plane == (0 if format.names[0] == "polyp" and format.num_classes == 2 else 1)) != disc()
    assert wrong.sum() <= (30 if suffix.lower() in (".jpg", ".jpeg", ".webp") else 0)


def test_grays_of_compression_are_what_other_codecs_refuse(tmp_path):
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", gray(), [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes())
    assert len(np.unique(cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_GRAYSCALE))) > 20
    assert set(np.unique(open_codec("threshold", POLYP).read(tmp_path, "a"))) == {0, 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 1, 1]),
        ({"threshold": 200}, [0, 0, 0, 1]),
        ({"threshold": 0}, [0, 1, 1, 1]),
        ({"dark": True}, [1, 1, 0, 0]),
        ({"dark": True, "threshold": 200}, [1, 1, 1, 0]),
    ],
)
def test_above_the_threshold_is_the_class(options, expected, tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 127, 128, 201]], np.uint8))
    codec = open_codec({"name": "threshold", **options}, POLYP)
    assert codec.read(tmp_path, "a").ravel().tolist() == expected
    assert open_codec(codec.to_spec(), POLYP) == codec
    assert (codec == open_codec("threshold", POLYP)) == (not options)


def test_16_bits_and_pure_colours(tmp_path):
    write_png(tmp_path / "deep.png", np.array([[0, 32767, 32768]], np.uint16))
    # green and blue would be dark as gray levels (0.11 of 255 for blue)
    write_png(tmp_path / "marks.png", np.array([[[0, 0, 255], [0, 130, 0], [120, 120, 120]]], np.uint8))
    codec = open_codec("threshold", POLYP)
    assert codec.read(tmp_path, "deep").ravel().tolist() == [0, 0, 1]
    assert codec.read(tmp_path, "marks").ravel().tolist() == [1, 1, 0]


def test_floats_need_a_threshold(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.2, 0.6]], np.float32))
    with pytest.raises(ValueError, match=r"a\.tif: holds floats.*give `threshold`, such as 0\.5"):
        open_codec("threshold", POLYP).read(tmp_path, "a")
    codec = open_codec({"name": "threshold", "threshold": 0.5}, POLYP)
    assert codec.read(tmp_path, "a").ravel().tolist() == [0, 1]


def test_masks_of_0_and_1_are_not_taken_for_black(tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 1]], np.uint8))
    write_png(tmp_path / "black.png", np.zeros((1, 2), np.uint8))
    codec = open_codec("threshold", POLYP)
    with pytest.raises(ValueError, match=r"a\.png: holds 0 and 1 of 255.*`index_png`.*`threshold`, such as 0"):
        codec.read(tmp_path, "a")
    assert codec.read(tmp_path, "black").ravel().tolist() == [0, 0]
    low = open_codec({"name": "threshold", "threshold": 0}, POLYP)
    assert low.read(tmp_path, "a").ravel().tolist() == [0, 1]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dark", [False, True])
def test_masks_are_written_black_and_white(suffix, dark, tmp_path):
    codec = open_codec({"name": "threshold", "suffix": suffix, "dark": dark}, POLYP)
    codec.write(tmp_path, "a", np.array([[[0], [1]]], np.uint8))
    shown = cv2.imread(str(tmp_path / f"a{suffix}"), cv2.IMREAD_UNCHANGED)
    assert shown.tolist() == [[255, 0] if dark else [0, 255]]
    assert codec.read(tmp_path, "a").ravel().tolist() == [0, 1]


def test_no_second_mask_of_one_name_is_written(tmp_path):
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", gray())[1].tobytes())
    codec = open_codec("threshold", POLYP)
    with pytest.raises(ValueError, match=r"a\.jpg: is there already.*another folder"):
        codec.write(tmp_path, "a", np.zeros((2, 3, 1), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    "format",
    [MaskFormat.multilabel(["disc", "cup"]), MaskFormat.multiclass(["sky", "road"]), MaskFormat.multiclass(range(3))],
)
def test_formats_of_several_classes_are_refused(format):
    with pytest.raises(ValueError, match=r"tell one class from its background, but the classes are.*`index_png`"):
        open_codec("threshold", format)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": -1}, "threshold is -1: expected a number from 0 on"),
        ({"threshold": float("inf")}, "threshold is inf"),
        ({"threshold": True}, "threshold is True"),
        ({"threshold": "half"}, "threshold is 'half'"),
        ({"dark": "yes"}, "dark is 'yes': expected true or false"),
        ({"suffix": ".jpg"}, r"suffix is '\.jpg': expected one of \.png, \.tif"),
    ],
)
def test_options_that_cannot_be_meant(options, said):
    with pytest.raises(ValueError, match=said):
        open_codec({"name": "threshold", **options}, POLYP)


def test_a_file_of_many_bands_is_no_mask(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 5, 6), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(ValueError, match=r"a\.tif: has 6 bands"):
        open_codec("threshold", POLYP).read(tmp_path, "a")
