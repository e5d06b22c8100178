import numpy as np
import pytest

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import read_png, write_png

BRATS = MaskFormat.multilabel(["WT", "TC", "ET"])


def letters(count: int) -> MaskFormat:
    return MaskFormat.multilabel([f"c{n}" for n in range(count)])


def test_bits_by_hand(tmp_path):
    # 5 = 4 + 1: WT and ET; 6 = 4 + 2: TC and ET; 7: all
    write_png(tmp_path / "a.png", np.array([[0, 1, 5], [6, 7, 2]], np.uint8))
    planes = open_codec("bit_planes", BRATS).read(tmp_path, "a")
    assert planes.dtype == np.uint8
    assert planes.tolist() == [[[0, 0, 0], [1, 0, 0], [1, 0, 1]], [[0, 1, 1], [1, 1, 1], [0, 1, 0]]]


def test_bits_may_be_in_any_order_with_gaps(tmp_path):
    codec = open_codec({"name": "bit_planes", "bits": {"9": "ET", 0: "TC", 3: "WT"}, "ignored_values": [2]}, BRATS)
    write_png(tmp_path / "a.png", np.array([[512, 1, 8, 2, 0]], np.uint16))
    planes = codec.read(tmp_path, "a")
    assert planes[0].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [255, 255, 255], [0, 0, 0]]
    codec.write(tmp_path, "b", planes)
    assert read_png(tmp_path / "b.png").pixels.tolist() == [[512, 1, 8, 2, 0]]
    assert open_codec(codec.to_spec(), BRATS) == codec != open_codec("bit_planes", BRATS)


@pytest.mark.parametrize(
    ("count", "ignored", "depth"), [(1, [], 8), (7, [255], 8), (8, [], 8), (8, [256], 16), (9, [], 16), (16, [], 16)]
)
def test_files_have_8_bits_where_those_suffice(count, ignored, depth, tmp_path):
    codec = open_codec({"name": "bit_planes", "ignored_values": ignored}, letters(count))
    codec.write(tmp_path, "a", np.zeros((2, 3, count), np.uint8))
    assert read_png(tmp_path / "a.png").bits == depth


def test_8_bit_files_of_many_classes_are_read(tmp_path):
    write_png(tmp_path / "a.png", np.array([[129]], np.uint8))
    planes = open_codec("bit_planes", letters(12)).read(tmp_path, "a")
    assert np.flatnonzero(planes).tolist() == [0, 7]


def test_bits_without_a_class_are_named(tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 9], [33, 7]], np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: found bits \[3, 5\] set.*declared: 0: WT, 1: TC, 2: ET"):
        open_codec("bit_planes", BRATS).read(tmp_path, "a")
    # an ignored number is taken as a whole, and its bits mean nothing
    codec = open_codec({"name": "bit_planes", "ignored_values": [33]}, BRATS)
    with pytest.raises(ValueError, match=r"found bits \[3\] set.*number 33: ignored"):
        codec.read(tmp_path, "a")


@pytest.mark.parametrize(("ignored", "said"), [(0, "no class is there"), (5, "WT and ET hold there.*such as 255")])
def test_an_ignored_number_must_not_mean_classes(ignored, said):
    with pytest.raises(ValueError, match=f"{ignored} is in `ignored_values`, but says already that {said}"):
        open_codec({"name": "bit_planes", "ignored_values": [ignored]}, BRATS)


def test_the_way_out_where_every_number_of_8_or_16_bits_has_a_meaning():
    with pytest.raises(ValueError, match="such as 256"):
        open_codec({"name": "bit_planes", "ignored_values": [255]}, letters(8))
    with pytest.raises(ValueError, match="Every number has a meaning: use the codec `file_per_class`"):
        open_codec({"name": "bit_planes", "ignored_values": [65535]}, letters(16))


def test_ignored_pixels_are_written_for_all_classes_or_not_at_all(tmp_path):
    planes = np.array([[[255, 255, 255], [0, 255, 1]]], np.uint8)
    codec = open_codec({"name": "bit_planes", "ignored_values": [128, 255]}, BRATS)
    with pytest.raises(ValueError, match=r"a\.png: 1 pixels are ignored in some classes only.*`file_per_class`"):
        codec.write(tmp_path, "a", planes)
    codec.write(tmp_path, "a", planes[:, :1])
    assert read_png(tmp_path / "a.png").pixels.tolist() == [[128]]
    with pytest.raises(ValueError, match="`ignored_values`, such as"):
        open_codec("bit_planes", BRATS).write(tmp_path, "b", planes[:, :1])


@pytest.mark.parametrize(
    ("format", "options", "said"),
    [
        (MaskFormat.multiclass(["sky", "road"]), {}, "exclude each other.*`index_png`"),
        (letters(17), {}, "too few for 17 classes.*`file_per_class`, or `tiff`"),
        (BRATS, {"bits": {0: "WT", 1: "TC", 2: "WT"}}, "names bit 2 or class 'WT' twice"),
        (BRATS, {"bits": {0: "WT", "0": "TC", 2: "ET"}}, "names bit 0 or class 'TC' twice"),
        (BRATS, {"bits": {0: "WT", 1: "TC"}}, r"no bit for \['ET'\]"),
        (BRATS, {"bits": {0: "WT", 1: "TC", 2: "necrosis"}}, "'necrosis', which is no class"),
        (BRATS, {"bits": {0: "WT", 1: "TC", 16: "ET"}}, "bit 16: a PNG has the bits 0 to 15"),
        (BRATS, {"bits": ["WT", "TC", "ET"]}, "expected lines `BIT: NAME`"),
        (BRATS, {"ignored_values": [65536]}, "from 0 to 65535"),
    ],
)
def test_options_that_cannot_be_meant(format, options, said):
    with pytest.raises(ValueError, match=said):
        open_codec({"name": "bit_planes", **options}, format)
