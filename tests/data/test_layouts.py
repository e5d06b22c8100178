import re
from pathlib import Path

import pytest

from segkit.data.layouts import LAYOUTS, Part, open_layout, recognise


def test_folders_lie_below_the_root():
    part = open_layout("folders", "data/x", "train", {"images": "train/images", "masks": "/else/masks"})
    assert part == Part(Path("data/x/train/images"), Path("/else/masks"))


def test_a_part_says_how_files_are_named():
    given = {
        "images": "i",
        "masks": "m",
        "image_pattern": "{stem}_{band}",
        "bands": ["a", "b"],
        "mask_pattern": "m{stem}",
    }
    part = open_layout("folders", "x", "val", given)
    assert part == Part(Path("x/i"), Path("x/m"), None, "{stem}_{band}", "m{stem}", ("a", "b"))


def test_a_list_gives_stems(tmp_path):
    (tmp_path / "train.txt").write_text("b\na\n")
    part = open_layout("folders", tmp_path, "train", {"images": "i", "masks": "m", "list": "train.txt"})
    assert part.stems == ["b", "a"]


@pytest.mark.parametrize(
    ("layout", "part", "message"),
    [
        ("folder", {"images": "i", "masks": "m"}, r"'folder', which is not known. Did you mean `folders`"),
        ("folders", {"images": "i", "mask": "m"}, r"data\.val has no key 'mask'. Did you mean `masks`"),
        ("folders", {"images": "i"}, r"data\.val is .*expected \{images: FOLDER, masks: FOLDER\}"),
        ("voc", {}, r"no part 'val' here; found are none\. Expected: JPEGImages, .*Correct `data\.root`, or name"),
        ("voc", {"images": "i"}, r"no part 'val' here"),
    ],
)
def test_mistakes_are_named(tmp_path, layout, part, message):
    with pytest.raises(ValueError, match=message):
        open_layout(layout, tmp_path, "val", part)


def test_a_generated_set_is_written_once(tmp_path):
    root = tmp_path / "scene"
    part = open_layout("scene", root, "val", {})
    assert (part.images, part.masks) == (root / "val" / "images", root / "val" / "masks")
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}
    assert open_layout("scene", root, "train", {}).images.is_dir()
    assert times == {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}


def test_an_empty_folder_has_no_layout_and_no_parts(tmp_path):
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "no_such") is None
    for name, layout in LAYOUTS.items():
        assert layout.expects, name
        if name not in ("scene", "mni152"):
            assert layout.parts(tmp_path) == {}, name


def test_a_description_that_cannot_be_read_is_no_layout(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text("{")
    assert recognise(tmp_path) is None


def test_the_page_on_data_sets_names_every_layout():
    page = Path(__file__).resolve().parents[2] / "data" / "README.md"
    rows = [line.split("|")[1] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named >= LAYOUTS.keys()
