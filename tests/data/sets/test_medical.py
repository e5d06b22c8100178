from __future__ import annotations

import cv2
import imagecodecs
import numpy as np
import pytest

from segkit.data.layouts import recognise
from tests.data.sets.small import open_set, planes_of, stems_and_values, write_image, write_values

ROWS = [[255, 0, 0, 0, 0, 255]] * 4
PLANE = [[1, 0, 0, 0, 0, 1]] * 4


def write_isic_2018(root):
    for word, name, value in (("Training", "ISIC_0000000", 1), ("Validation", "ISIC_0012255", 2)):
        write_image(root / f"ISIC2018_Task1-2_{word}_Input" / f"{name}.jpg", value)
        (root / f"ISIC2018_Task1-2_{word}_Input" / "ATTRIBUTION.txt").write_text("CC-0")
        write_values(root / f"ISIC2018_Task1_{word}_GroundTruth" / f"{name}_segmentation.png", ROWS)
        write_values(root / f"ISIC2018_Task2_{word}_GroundTruth_v3" / f"{name}_attribute_streaks.png", ROWS)


def write_isic_2017(root):
    for word, name, value in (("Training", "ISIC_0000000", 1), ("Validation", "ISIC_0001769", 2)):
        write_image(root / f"ISIC-2017_{word}_Data" / f"{name}.jpg", value)
        write_image(root / f"ISIC-2017_{word}_Data" / f"{name}_superpixels.png", 99)
        write_values(root / f"ISIC-2017_{word}_Part1_GroundTruth" / f"{name}_segmentation.png", ROWS)
        (root / f"ISIC-2017_{word}_Part2_GroundTruth").mkdir()


def write_isic_2016(root):
    for word, name, value in (("Training", "ISIC_0000000", 1), ("Test", "ISIC_0000003", 2)):
        write_image(root / f"ISBI2016_ISIC_Part1_{word}_Data" / f"{name}.jpg", value)
        write_values(root / f"ISBI2016_ISIC_Part1_{word}_GroundTruth" / f"{name}_Segmentation.png", ROWS)


@pytest.mark.parametrize(
    ("write", "second", "names"),
    [
        (write_isic_2018, "val", ("ISIC_0000000", "ISIC_0012255")),
        (write_isic_2017, "val", ("ISIC_0000000", "ISIC_0001769")),
        (write_isic_2016, "test", ("ISIC_0000000", "ISIC_0000003")),
    ],
)
def test_isic(tmp_path, write, second, names):
    write(tmp_path)
    parts = open_set(tmp_path, "isic", **{"train": {}, second: {}})
    other = getattr(parts, second)
    assert (stems_and_values(parts.train), stems_and_values(other)) == ({names[0]: 1}, {names[1]: 2})
    assert planes_of(other) == PLANE
    assert parts.train.format.names == ("lesion",)
    assert recognise(tmp_path) == "isic"


def write_chase(root):
    for child in range(1, 15):
        for eye in "LR":
            write_image(root / f"Image_{child:02d}{eye}.jpg", 8 * child)
            write_values(root / f"Image_{child:02d}{eye}_1stHO.png", ROWS)
            write_values(root / f"Image_{child:02d}{eye}_2ndHO.png", [[0] * 6] * 4)


def test_chase_lies_in_one_folder(tmp_path):
    write_chase(tmp_path)
    parts = open_set(tmp_path, "chase", train={}, test={})
    assert (len(parts.train), len(parts.test)) == (20, 8)
    # both eyes of a child stay on one side
    assert parts.test.stems == [f"Image_{child}{eye}" for child in (11, 12, 13, 14) for eye in "LR"]
    assert abs(stems_and_values(parts.test)["Image_11L"] - 88) <= 1  # JPEG
    assert planes_of(parts.test) == PLANE
    second = open_set(tmp_path, "chase", train={"mask_pattern": "{stem}_2ndHO"})
    assert planes_of(second.train) == [[0] * 6] * 4
    assert recognise(tmp_path) == "chase"


def test_a_mask_of_chase_that_is_missing_is_told(tmp_path):
    write_chase(tmp_path)
    (tmp_path / "Image_02R_1stHO.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 20 images .* have no mask .*: Image_02R"):
        open_set(tmp_path, "chase")


def write_kvasir(root):
    disc = np.zeros((32, 48, 3), np.uint8)
    disc[8:24, 8:24] = 255
    for number, name in enumerate(("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4")):
        write_image(root / "images" / f"{name}.jpg", number, (32, 48))
        (root / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "masks" / f"{name}.jpg"), disc)
    (root / "kavsir_bboxes.json").write_text("{}")


def test_kvasir_masks_are_jpeg_files(tmp_path):
    write_kvasir(tmp_path)
    parts = open_set(tmp_path, "kvasir", train={}, val={"from": "train", "fraction": 0.5})
    plane = planes_of(parts.val)
    assert sum(map(sum, plane)) == 16 * 16
    assert {sum(row[8:24]) for row in plane[8:24]} == {16}
    assert parts.train.format.names == ("polyp",)
    assert recognise(tmp_path) == "kvasir"


def write_gif(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.gif_encode(np.array(rows, np.uint8)))


def test_drive_masks_are_gif_files_of_other_names(tmp_path):
    for folder, ending, numbers in (("training", "training", (21, 22)), ("test", "test", (1, 2))):
        for number in numbers:
            write_image(tmp_path / folder / "images" / f"{number:02d}_{ending}.tif", number)
            write_gif(tmp_path / folder / "1st_manual" / f"{number:02d}_manual1.gif", ROWS)
            write_gif(tmp_path / folder / "mask" / f"{number:02d}_{ending}_mask.gif", [[255] * 6] * 4)
    for number in (1, 2):
        write_gif(tmp_path / "test" / "2nd_manual" / f"{number:02d}_manual2.gif", [[0] * 6] * 4)
    parts = open_set(tmp_path, "drive", train={}, test={})
    assert (stems_and_values(parts.train), stems_and_values(parts.test)) == ({"21": 21, "22": 22}, {"01": 1, "02": 2})
    assert planes_of(parts.test) == PLANE
    other = {"masks": "test/2nd_manual", "mask_pattern": "{stem}_manual2"}
    assert planes_of(open_set(tmp_path, "drive", train={}, test=other).test) == [[0] * 6] * 4
    assert recognise(tmp_path) == "drive"


@pytest.mark.parametrize(("images", "masks"), [("stare-images", "labels-ah"), (".", ".")])
def test_stare(tmp_path, images, masks):
    for number in (1, 2, 3):
        write_image(tmp_path / images / f"im{number:04d}.ppm", number)
    for number in (1, 3):  # most pictures are not labelled
        write_image(tmp_path / masks / f"im{number:04d}.ah.ppm", 255 if number == 1 else 0)
    parts = open_set(tmp_path, "stare")
    assert stems_and_values(parts.train) == {"im0001": 1, "im0003": 3}
    assert [planes_of(parts.train, i) for i in (0, 1)] == [[[1] * 6] * 4, [[0] * 6] * 4]
    assert recognise(tmp_path) == "stare"
