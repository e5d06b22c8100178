from __future__ import annotations

import pytest

from segkit.data.layouts import recognise
from tests.data.sets.small import open_set, planes_of, stems_and_values, write_image, write_values

MASKS = {"format": "binary", "classes": ["nucleus"], "codec": {"name": "index_png", "values": {"255": "nucleus"}}}


@pytest.mark.parametrize(
    ("images", "masks", "names"),
    [
        ("{}/images", "{}/masks", ("train", "val", "test")),
        ("images/{}", "labels/{}", ("training", "validation", "testing")),
        ("{}/imgs", "{}/gt", ("train", "valid", "test")),
    ],
)
def test_folders_of_usual_names_need_no_names(tmp_path, images, masks, names):
    for number, name in enumerate(names):
        write_image(tmp_path / images.format(name) / "a.jpg", 40 * number)
        write_values(tmp_path / masks.format(name) / "a.png", [[255, 0, 0, 0, 0, 0]] * 4)
    parts = open_set(tmp_path, "folders", MASKS, train={}, val={}, test={})
    assert [stems_and_values(p)["a"] for p in (parts.train, parts.val, parts.test)] == [0, 40, 80]
    assert planes_of(parts.val) == [[1, 0, 0, 0, 0, 0]] * 4


def test_one_pair_of_folders_is_the_training_part(tmp_path):
    write_image(tmp_path / "images" / "a.png", 3)
    write_values(tmp_path / "masks" / "a.png", [[0] * 6] * 4)
    assert stems_and_values(open_set(tmp_path, "folders", MASKS).train) == {"a": 3}
    with pytest.raises(ValueError, match=r"no part 'val' here; found are \['train'\]\. Expected: folders such as"):
        open_set(tmp_path, "folders", MASKS, train={}, val={})
    assert recognise(tmp_path) is None


def test_what_a_config_says_goes_first(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "pictures" / f"{name}_photo.png", ord(name))
        write_values(tmp_path / "train" / "masks" / f"{name}.png", [[0] * 6] * 4)
    write_image(tmp_path / "train" / "images" / "a.png", 3)
    (tmp_path / "list.txt").write_text("b\n")
    given = {"images": "pictures", "image_pattern": "{stem}_photo", "list": "list.txt"}
    assert stems_and_values(open_set(tmp_path, "folders", MASKS, train=given).train) == {"b": 98}


def test_without_a_masks_section_plain_folders_say_nothing_of_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"\.yaml.*`masks` is missing"):
        open_set(tmp_path, "folders")


def write_class_folders(root, part="."):
    for name, value in (("a", 5), ("town/b", 6)):
        write_image(root / part / "images" / f"{name}.jpg", value)
        write_values(root / part / "masks" / "cup" / f"{name}.png", [[0, 255, 0, 0, 0, 0]] * 4)
        write_values(root / part / "masks" / "disc" / f"{name}.png", [[255, 255, 0, 0, 0, 0]] * 4)


def test_one_folder_per_class(tmp_path):
    write_class_folders(tmp_path)
    parts = open_set(tmp_path, "class_folders")
    assert stems_and_values(parts.train) == {"a": 5, "town/b": 6}
    assert parts.train.format.names == ("cup", "disc")
    assert planes_of(parts.train, 1)[0][:3] == [[0, 1], [1, 1], [0, 0]]
    assert recognise(tmp_path) == "class_folders"


def test_one_folder_per_class_in_every_part(tmp_path):
    for part in ("train", "val"):
        write_class_folders(tmp_path, part)
    (tmp_path / "val" / "masks" / "cup" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cup.a\.png: no such file\. .*`missing: empty`"):
        open_set(tmp_path, "class_folders", train={}, val={})
    masks = {"codec": {"name": "file_per_class", "missing": "empty"}}
    parts = open_set(tmp_path, "class_folders", masks, train={}, val={})
    assert planes_of(parts.val, 0)[0][:3] == [[0, 1], [0, 1], [0, 0]]


def test_folders_of_towns_are_no_classes(tmp_path):
    for name in ("aachen/a", "bonn/b"):
        write_image(tmp_path / "images" / f"{name}.png")
        write_values(tmp_path / "masks" / f"{name}.png", [[0] * 6] * 4)
    assert recognise(tmp_path) is None


def test_a_set_that_is_written_says_what_its_masks_mean(tmp_path):
    parts = open_set(tmp_path / "scene", "scene", train={}, val={})
    assert parts.train.format.names == ("sky", "ground", "building", "ball")
    assert (len(parts.train), len(parts.val)) == (24, 8)  # as its README says
