"""Which coding masks use, told from their files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import write_png
from segkit.inspection.coding import find_coding, spread
from tests.scenes import FORMATS, write_set

MARKS = np.eye(6, dtype=np.uint8) * 255


@pytest.mark.parametrize("name", ["index_png", "palette_png", "color_png", "nifti"])
def test_what_a_codec_writes_is_told_from_its_files(tmp_path, name):
    data = write_set(tmp_path, FORMATS["exclusive"], 3, codec=open_codec(name, FORMATS["exclusive"]))
    coding = find_coding(data.masks, data.stems)
    assert (coding.codec, coding.classes, dict(coding.options)) == (name, None, {})


@pytest.mark.parametrize("pattern", ["{class}/{stem}.png", "{stem}/{class}.png", "{stem}_{class}.png"])
def test_files_per_class_are_told_by_the_names_of_images(tmp_path, pattern):
    format = MaskFormat.multilabel(["left lung", "right_lung", "heart"])
    codec = open_codec({"name": "file_per_class", "pattern": pattern}, format)
    planes = np.zeros((4, 5, 3), np.uint8)
    stems = ["p_1", "p_1_2", "q"]
    for stem in stems:
        codec.write(tmp_path, stem, planes)
    coding = find_coding(tmp_path, stems)
    assert coding.codec == "file_per_class"
    assert coding.classes == ("heart", "left lung", "right_lung")
    found = open_codec({"name": coding.codec, **coding.options}, MaskFormat.multilabel(coding.classes))
    assert found.pattern == pattern
    assert found.stems(tmp_path) == stems


def test_masks_in_folders_as_their_images_are_no_class_files(tmp_path):
    for stem in ("town/a", "town/b", "sea/a"):
        write_png(tmp_path / f"{stem}.png", MARKS)
    assert find_coding(tmp_path, ["town/a", "town/b", "sea/a"]).codec == "index_png"
    # of images without those folders, the folders are classes
    assert find_coding(tmp_path, ["a", "b"]).classes == ("sea", "town")


def test_one_image_of_many_classes(tmp_path):
    for number in range(5):
        write_png(tmp_path / f"organ{number}" / "a.png", MARKS)
    assert find_coding(tmp_path, ["a"]).classes == tuple(f"organ{number}" for number in range(5))


def test_one_suffix_for_all_masks_is_no_class(tmp_path):
    for stem in ("a", "b", "c"):
        write_png(tmp_path / f"{stem}_mask.png", MARKS)
    assert find_coding(tmp_path, ["a", "b", "c"]).codec == "index_png"


def test_jpeg_masks_are_bright_and_dark_pictures(tmp_path):
    for stem in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{stem}.JPG"), MARKS)
    assert find_coding(tmp_path, ["a", "b"]).codec == "threshold"


def test_the_kind_of_most_files_counts(tmp_path):
    for number in range(5):
        write_png(tmp_path / f"s{number}.png", np.uint8([[0, 3]]))
    write_png(tmp_path / "s5.png", np.zeros((1, 2, 3), np.uint8))
    (tmp_path / "s6.png").write_bytes(b"no PNG")
    assert find_coding(tmp_path, [f"s{n}" for n in range(7)]).text == "one number per pixel in an 8-bit PNG"


def test_no_masks_is_said(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="no masks here"):
        find_coding(tmp_path, ["a"])
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="are PNG files"):
        find_coding(tmp_path, ["a"])


def test_spread_takes_from_end_to_end():
    assert spread(list(range(100)), 5) == [0, 24, 49, 74, 99]
    assert spread([Path("a")], 5) == [Path("a")]
    assert spread([], 5) == []


@pytest.mark.parametrize("suffix", [".pgm", ".GIF", ".jp2"])
def test_masks_in_any_kind_of_picture_are_bright_and_dark(tmp_path, suffix):
    for name in "ab":
        (tmp_path / f"{name}{suffix}").write_bytes(b"told by its name")
    assert find_coding(tmp_path, ["a", "b"]).codec == "threshold"
