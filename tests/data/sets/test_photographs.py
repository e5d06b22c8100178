from __future__ import annotations

import json

import numpy as np
import pytest

from segkit.data.layouts import find_layout, recognise
from segkit.data.sets.photographs import COCO_STUFF, COCO_THINGS, VOC, voc_color
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from tests.data.sets.small import (
    open_set,
    planes_of,
    read_layout,
    stems_and_values,
    write_image,
    write_values,
)

IGNORED = 255


def write_voc(root):
    for number, name in enumerate(("2007_000032", "2007_000033", "2008_000008")):
        write_image(root / "JPEGImages" / f"{name}.jpg", 40 * number)
    write_image(root / "JPEGImages" / "2009_000001.jpg")  # of the detection task: has no mask
    palette = open_codec({"name": "palette_png", "ignored_values": [255]}, MaskFormat.multiclass(VOC))
    planes = np.array([[0, 1, 20, 255, 15, 0]] * 4, np.uint8)[..., None]
    for name in ("2007_000032", "2007_000033", "2008_000008"):
        palette.write(root / "SegmentationClass", name, planes)
    lists = {"train": ["2007_000032"], "val": ["2007_000033"], "trainval": ["2007_000032", "2007_000033"]}
    for name, stems in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in stems))


def test_voc(tmp_path):
    write_voc(tmp_path)
    parts = open_set(tmp_path, "voc", train={}, val={})
    assert stems_and_values(parts.train) == {"2007_000032": 0}
    assert stems_and_values(parts.val) == {"2007_000033": 40}
    assert planes_of(parts.val) == [[0, 1, 20, IGNORED, 15, 0]] * 4
    assert parts.train.format.names[1::14] == ("aeroplane", "person")
    both = open_set(tmp_path, "voc", train={"list": "ImageSets/Segmentation/trainval.txt"})
    assert stems_and_values(both.train) == {"2007_000032": 0, "2007_000033": 40}
    assert recognise(tmp_path) == "voc"


def test_colours_of_voc():
    # the first and last of the development kit's table
    assert [voc_color(n) for n in (0, 1, 2, 8, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    assert len(VOC) == 21


def write_ade20k(root):
    for part, name, value in (("training", "ADE_train_00000001", 3), ("validation", "ADE_val_00000001", 4)):
        write_image(root / "images" / part / f"{name}.jpg", value)
        write_values(root / "annotations" / part / f"{name}.png", [[0, 1, 2, 150, 3, 4]] * 4)


@pytest.mark.parametrize("named", [True, False])
def test_ade20k(tmp_path, named):
    write_ade20k(tmp_path)
    if named:
        rows = ["1\t0.1576\t11664\t1172\twall\t", "2\t0.1072\t6046\t612\tbuilding, edifice\t"]
        rows += [f"{number}\t0.0\t1\t1\tbuilding, kind {number}\t" for number in range(3, 151)]
        (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    parts = open_set(tmp_path, "ade20k", train={}, val={})
    assert (stems_and_values(parts.train), stems_and_values(parts.val)) == (
        {"ADE_train_00000001": 3},
        {"ADE_val_00000001": 4},
    )
    assert planes_of(parts.val) == [[IGNORED, 0, 1, 149, 2, 3]] * 4
    expected = ("wall", "building", "building, kind 3") if named else ("1", "2", "3")
    assert parts.train.format.names[:3] == expected
    assert recognise(tmp_path) == "ade20k"


def test_a_damaged_table_of_ade20k_is_named(tmp_path):
    write_ade20k(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text("number name\n1 wall\n")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: '1 wall', expected the columns Idx and Name"):
        read_layout(tmp_path, "ade20k")


@pytest.mark.parametrize("masks", ["stuffthingmaps", "annotations"])
@pytest.mark.parametrize("images", ["{}", "images/{}"])
def test_coco_stuff(tmp_path, images, masks):
    for part, name, value in (("train2017", "000000000009", 5), ("val2017", "000000000139", 6)):
        write_image(tmp_path / images.format(part) / f"{name}.jpg", value)
        # person, toothbrush, banner, wood, unlabelled
        write_values(tmp_path / masks / part / f"{name}.png", [[0, 89, 91, 181, 255, 255]] * 4)
    parts = open_set(tmp_path, "coco_stuff", train={}, val={})
    assert (stems_and_values(parts.train), stems_and_values(parts.val)) == ({"000000000009": 5}, {"000000000139": 6})
    assert planes_of(parts.val) == [[0, 79, 80, 170, IGNORED, IGNORED]] * 4
    assert parts.val.format.names[79:81] == ("toothbrush", "banner")
    assert recognise(tmp_path) == "coco_stuff"


def test_names_of_coco_are_those_of_torchvision():
    from torchvision.models._meta import _COCO_CATEGORIES

    official = {number: name for number, name in enumerate(_COCO_CATEGORIES) if name not in ("N/A", "__background__")}
    assert official == COCO_THINGS
    assert (len(COCO_THINGS), len(COCO_STUFF), min(COCO_STUFF), max(COCO_STUFF)) == (80, 91, 92, 182)
    assert {number: COCO_STUFF[number] for number in (117, 149, 173)} == {
        117: "floor-tile",
        149: "road",
        173: "wall-other",
    }


def test_names_of_coco_are_those_of_its_files(shared_data):
    described = json.loads((shared_data / "coco_subset" / "annotations" / "instances_val.json").read_text())
    assert {c["id"]: c["name"] for c in described["categories"]} == COCO_THINGS


def write_coco(path, names):
    """A cat over the left half of each picture, a dog over its two columns on the left; the last has no objects."""
    images = [{"id": n, "file_name": f"{name}.jpg", "height": 4, "width": 6} for n, name in enumerate(names)]
    boxes = [(18, [0, 0, 2, 0, 2, 4, 0, 4]), (17, [0, 0, 3, 0, 3, 4, 0, 4])]
    annotations = [
        {"id": 10 * n + c, "image_id": n, "category_id": c, "segmentation": [polygon], "iscrowd": 0, "area": 1}
        for n in range(len(names) - 1)
        for c, polygon in boxes
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "toothbrush"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.mark.parametrize(
    ("images", "files", "parts"),
    [
        ("{}", "annotations/instances_{}.json", ("train2017", "val2017")),
        ("images/{}", "annotations/instances_{}.json", ("train2014", "val2014")),
        ("images", "annotations/instances_{}.json", ("train", "val")),
        ("{}", "{}/_annotations.coco.json", ("train", "valid")),
    ],
)
def test_coco(tmp_path, images, files, parts):
    for number, part in enumerate(parts):
        names = [f"{part}_{i}" for i in range(2)]
        for i, name in enumerate(names):
            write_image(tmp_path / images.format(part) / f"{name}.jpg", 50 * number + 10 * i)
        write_coco(tmp_path / files.format(part), names)
    opened = open_set(tmp_path, "coco", train={}, val={})
    for number, (part, data) in enumerate(zip(parts, (opened.train, opened.val), strict=True)):
        assert stems_and_values(data) == {f"{part}_0": 50 * number, f"{part}_1": 50 * number + 10}
        assert data.format.names == ("cat", "dog", "toothbrush")
        assert planes_of(data) == [[[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]] * 4
        assert planes_of(data, 1) == [[[0, 0, 0]] * 6] * 4
    assert recognise(tmp_path) == "coco"


def test_coco_with_the_pictures_of_one_part(tmp_path):
    # The archive of annotations holds all parts; few people download all pictures.
    write_image(tmp_path / "images" / "val2017" / "a.jpg")
    for part, name in (("train2017", "b"), ("val2017", "a")):
        write_coco(tmp_path / "annotations" / f"instances_{part}.json", [name])
    assert list(find_layout("coco").parts(tmp_path)) == ["val"]


def write_oxford_pet(root):
    for name, value in (("Abyssinian_1", 1), ("beagle_2", 2), ("Birman_3", 3)):
        write_image(root / "images" / f"{name}.jpg", value)
        write_values(root / "annotations" / "trimaps" / f"{name}.png", [[2, 2, 3, 1, 3, 2]] * 4)
    (root / "images" / "Abyssinian_1.mat").write_bytes(b"MATLAB")
    (root / "annotations" / "trimaps" / "._Abyssinian_1.png").write_bytes(b"left by a Mac")
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\nAbyssinian_1 1 1 1\n")
    (root / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nBirman_3 1 1 1\n")
    (root / "annotations" / "test.txt").write_text("beagle_2 5 2 1\n")


def test_oxford_pet(tmp_path):
    write_oxford_pet(tmp_path)
    parts = open_set(tmp_path, "oxford_pet", train={}, val={"from": "train", "fraction": 0.5}, test={})
    assert stems_and_values(parts.train) | stems_and_values(parts.val) == {"Abyssinian_1": 1, "Birman_3": 3}
    assert stems_and_values(parts.test) == {"beagle_2": 2}
    assert planes_of(parts.test) == [[0, 0, IGNORED, 1, IGNORED, 0]] * 4
    assert parts.test.format.names == ("pet",)
    assert recognise(tmp_path) == "oxford_pet"
