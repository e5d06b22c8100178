from __future__ import annotations

import cv2
import numpy as np
import pytest

from segkit.data.layouts import recognise
from segkit.data.sets.streets import CAMVID_COLORS, CITYSCAPES
from tests.data.sets.small import open_set, planes_of, read_layout, stems_and_values, write_image, write_values

IGNORED = 255


def write_cityscapes(root):
    for part, city, number in (
        ("train", "aachen", 0),
        ("train", "bochum", 1),
        ("val", "frankfurt", 2),
        ("test", "bonn", 3),
    ):
        name = f"{city}/{city}_000000_000019"
        write_image(root / "leftImg8bit" / part / f"{name}_leftImg8bit.png", 50 * number, (2, 4))
        folder = root / "gtFine" / part
        # road, bicycle, ego vehicle, caravan / sky, train, unlabelled, car
        write_values(folder / f"{name}_gtFine_labelIds.png", [[7, 33, 1, 29], [23, 31, 0, 26]])
        write_values(folder / f"{name}_gtFine_instanceIds.png", [[7, 33, 1, 29], [23, 31, 0, 26]])
        cv2.imwrite(str(folder / f"{name}_gtFine_color.png"), np.zeros((2, 4, 3), np.uint8))
        (folder / f"{name}_gtFine_polygons.json").write_text("{}")


def test_cityscapes_ids_become_the_19_train_ids(tmp_path):
    write_cityscapes(tmp_path)
    parts = open_set(tmp_path, "cityscapes", train={}, val={})
    assert stems_and_values(parts.train) == {"aachen/aachen_000000_000019": 0, "bochum/bochum_000000_000019": 50}
    assert stems_and_values(parts.val) == {"frankfurt/frankfurt_000000_000019": 100}
    # the trainId column of the official table
    assert planes_of(parts.val) == [[0, 18, IGNORED, IGNORED], [10, 16, IGNORED, 13]]
    assert (parts.train.format.num_classes, parts.train.format.names[:2]) == (19, ("road", "sidewalk"))
    assert [number for number in CITYSCAPES if number % 2 == 0] == [8, 12, 20, 22, 24, 26, 28, 32]
    assert recognise(tmp_path) == "cityscapes"


def test_cityscapes_has_no_labels_for_its_test_part(tmp_path):
    write_cityscapes(tmp_path)
    with pytest.raises(ValueError, match=r"no part 'test' here; found are \['train', 'val'\]\. .*from: train"):
        open_set(tmp_path, "cityscapes", train={}, test={})
    named = {"images": "leftImg8bit/test", "masks": "gtFine/test"}
    assert stems_and_values(open_set(tmp_path, "cityscapes", train={}, test=named).test) == {
        "bonn/bonn_000000_000019": 150
    }
    coarse = {"masks": "gtCoarse/train", "mask_pattern": "{stem}_gtCoarse_labelIds"}
    for city in ("aachen", "bochum"):
        path = tmp_path / "gtCoarse" / "train" / city / f"{city}_000000_000019_gtCoarse_labelIds.png"
        write_values(path, [[8, 8, 8, 8], [8, 8, 8, 8]])
    assert planes_of(open_set(tmp_path, "cityscapes", train=coarse).train) == [[1] * 4] * 2


@pytest.mark.parametrize(("images", "masks"), [("{}", "{}annot"), ("{}/images", "{}/masks")])
def test_camvid_in_either_distribution(tmp_path, images, masks):
    for part, name, value in (("train", "0001TP_006690", 7), ("val", "0016E5_07959", 8), ("test", "Seq05VD_f00000", 9)):
        write_image(tmp_path / images.format(part) / f"{name}.png", value)
        write_values(tmp_path / masks.format(part) / f"{name}.png", [[0, 10, 11, 4, 5, 6]] * 4)
    parts = open_set(tmp_path, "camvid", train={}, val={}, test={})
    assert [stems_and_values(p) for p in (parts.train, parts.val, parts.test)] == [
        {"0001TP_006690": 7},
        {"0016E5_07959": 8},
        {"Seq05VD_f00000": 9},
    ]
    assert planes_of(parts.test) == [[0, 10, IGNORED, 4, 5, 6]] * 4
    assert parts.train.format.names[4:7] == ("pavement", "tree", "sign")
    assert parts.train.format.classes[4].color == (0, 0, 192)
    assert recognise(tmp_path) == "camvid"


def test_folders_of_other_names_are_not_taken_for_camvid(tmp_path):
    write_image(tmp_path / "train" / "images" / "street.png")
    write_values(tmp_path / "train" / "masks" / "street.png", [[0] * 6] * 4)
    assert recognise(tmp_path) is None


def write_camvid_32(root):
    for number, name in enumerate(("0001TP_006690", "Seq05VD_f00000")):
        write_image(root / "701_StillsRaw_full" / f"{name}.png", number, (2, 2))
        colors = [[(64, 0, 128), (0, 0, 0)], [(64, 192, 0), (0, 0, 192)]]  # car, void / wall, sidewalk
        path = root / "LabeledApproved_full" / f"{name}_L.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.array(colors, np.uint8)[..., ::-1])


def test_camvid_in_32_colours(tmp_path):
    write_camvid_32(tmp_path)
    parts = open_set(tmp_path, "camvid_32", train={}, val={"from": "train", "fraction": 0.5})
    assert stems_and_values(parts.train) | stems_and_values(parts.val) == {"0001TP_006690": 0, "Seq05VD_f00000": 1}
    names = parts.train.format.names
    assert len(names) == 31  # without `Void`
    assert planes_of(parts.val) == [[names.index("Car"), IGNORED], [names.index("Wall"), names.index("Sidewalk")]]
    assert recognise(tmp_path) == "camvid_32"


def test_the_colours_of_camvid_are_read_where_they_are_given(tmp_path):
    write_camvid_32(tmp_path)
    lines = ["64 0 128\tVehicle", "0 0 0\t\tVoid", "64 192 0\tWall", "", "0 0 192\tSidewalk"]
    (tmp_path / "label_colors.txt").write_text("\n".join(lines))
    parts = open_set(tmp_path, "camvid_32")
    assert parts.train.format.names == ("Vehicle", "Wall", "Sidewalk")
    assert planes_of(parts.train) == [[0, IGNORED], [1, 2]]
    (tmp_path / "label_colors.txt").write_text("64 0 Vehicle\n")
    with pytest.raises(ValueError, match=r"label_colors\.txt, line 1: '64 0 Vehicle', expected red, green, blue"):
        read_layout(tmp_path, "camvid_32")


def test_official_colours_differ():
    assert len(CAMVID_COLORS) == len(set(CAMVID_COLORS.values())) == 32
    assert len(CITYSCAPES) == len({color for _, color in CITYSCAPES.values()}) == 19
