from __future__ import annotations

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
