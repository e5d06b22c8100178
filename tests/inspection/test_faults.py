"""Every fault names its file, says what was found, and spoils no other sample."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from segkit.formats.png_files import write_png
from tests.inspection.sets import blocks, look, write_class_files, write_image, write_masks

GOOD = {f"s{number}": blocks([0, 1, 2], (40, 60)) for number in range(12)}


@pytest.fixture
def root(tmp_path):
    return write_masks(tmp_path, GOOD)


def faults(root, classes=None, **where) -> list[tuple[str, str]]:
    return [
        (entry["file"].rpartition("/")[2], entry["fault"]) for entry in look(root, classes, **where).report["faults"]
    ]


def test_a_good_set_has_none(root):
    found = look(root)
    assert found.report["faults"] == []
    assert found.bad == {}
    assert found.report["images"] == found.report["masks"] == 12


def test_images_without_masks_and_masks_without_images(root):
    (root / "masks" / "s3.png").unlink()
    (root / "images" / "s4.jpg").unlink()
    found = look(root)
    assert {f["file"].rpartition("/")[2]: f["fault"].split(" in ")[0] for f in found.report["faults"]} == {
        "s3.jpg": "an image without a mask",
        "s4.png": "a mask without an image",
    }
    assert set(found.bad) == {("train", "s3"), ("train", "s4")}
    assert found.report["images"] == 11


def test_sizes_that_differ_and_sides_that_are_swapped(root):
    write_png(root / "masks" / "s1.png", blocks([0, 1, 2], (60, 40)))
    write_png(root / "masks" / "s2.png", blocks([0, 1, 2], (40, 59)))
    found = dict(faults(root))
    assert set(found) == {"s1.png", "s2.png"}
    assert "60x40" in found["s1.png"]
    assert "lies on its side" in found["s1.png"]
    assert "40x59" in found["s2.png"]
    assert "lies on its side" not in found["s2.png"]


def test_files_that_cannot_be_decoded(root):
    for name in ("images/s5.jpg", "masks/s6.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    found = look(root)
    assert sorted(name for name, _ in faults(root)) == ["s5.jpg", "s6.png"]
    assert not any("s5" in fault or "s6" in fault for _, fault in faults(root))  # the file is named once
    assert set(found.bad) == {("train", "s5"), ("train", "s6")}
    assert found.report["masks"] == 11


def test_values_that_no_class_declares(root):
    write_png(root / "masks" / "s7.png", blocks([0, 1, 9], (40, 60)))
    found = faults(root, {0: "sky", 1: "road", 2: "ignore"})
    assert [name for name, _ in found] == ["s7.png"]
    assert "declares: 9" in found[0][1]
    # without names it may be a class like any other
    assert faults(root) == []


def test_resized_labels_look_interpolated(root):
    # two classes side by side, 0 and 80, enlarged with interpolation: ramps between them
    for stem in ("s8", "s9"):
        small = blocks([0, 80, 0, 80], (10, 15))
        write_png(root / "masks" / f"{stem}.png", cv2.resize(small, (60, 40), interpolation=cv2.INTER_LINEAR))
    for number in range(8):
        write_png(root / "masks" / f"s{number}.png", blocks([0, 80], (40, 60)))
    found = look(root)
    assert set(found.bad) == {("train", "s8"), ("train", "s9")}
    assert all("looks interpolated" in fault for _, fault in faults(root))
    # what blur made is no class
    assert found.report["advice"]["classes"] == ["0", "1", "2", "80"]


COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def coloured(size_hw=(64, 96)) -> np.ndarray:
    return COLOURS[blocks([0, 1, 0, 2, 0, 3], size_hw)]


def test_resized_colours_look_interpolated(tmp_path):
    root = write_masks(tmp_path, {f"s{n}": coloured() for n in range(6)})
    clean = look(root)
    assert (clean.bad, len(clean.report["advice"]["classes"])) == ({}, 4)
    write_png(root / "masks" / "s5.png", cv2.resize(coloured((16, 24)), (96, 64), interpolation=cv2.INTER_LINEAR))
    found = look(root)
    assert set(found.bad) == {("train", "s5")}
    assert "colours lie between" in found.bad["train", "s5"][0].text
    assert found.report["advice"]["classes"] == ["#000000", "#0000ff", "#00ff00", "#ff0000"]


def test_a_thin_class_in_resized_masks_stays_a_class(tmp_path):
    masks = {}
    for number in range(6):
        mask = np.zeros((160, 240), np.uint8)
        mask[40:120, 60:120] = 200
        mask[8:14, 8:14] = 90  # 0.1 % of the pixels
        small = cv2.resize(mask, (120, 80), interpolation=cv2.INTER_AREA)
        masks[f"s{number}"] = cv2.resize(small, (240, 160), interpolation=cv2.INTER_LINEAR)
    found = look(write_masks(tmp_path, masks))
    assert len(found.bad) == 6
    assert found.report["advice"]["classes"] == ["0", "90", "200"]


def test_pictures_in_place_of_masks_give_no_advice(tmp_path):
    noise = {f"s{n}": np.random.default_rng(n).integers(0, 256, (40, 60), dtype=np.uint8) for n in range(3)}
    found = look(write_masks(tmp_path, noise))
    assert found.report["advice"]["format"] is None
    assert found.report["advice"]["reasons"] == [
        "All masks are blurred or pictures, not masks: nothing can be told from them."
    ]
    with pytest.raises(ValueError, match=r"no config to write\. All masks are blurred"):
        found.config()


def test_masks_in_transparency_are_named(tmp_path):
    root = write_masks(tmp_path, {f"s{n}": blocks([0, 255]) for n in range(3)})
    for path in (root / "masks").iterdir():
        Image.fromarray(np.dstack([np.full((40, 60, 3), 255, np.uint8), blocks([0, 255])])).save(path)
    text = look(root).report["faults"][0]["fault"]
    assert "nothing but #ffffff" in text
    assert "Transparency is not read" in text


def jpegs(root, planes, value=None):
    """`root`/images and masks with a JPEG of gray levels or of colours."""
    for number in range(4):
        write_image(root / "images" / f"s{number}.jpg", planes.shape[:2], number)
        (root / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "masks" / f"s{number}.jpg"), planes)
    return look(root).report


def test_jpegs_of_several_classes_are_not_called_binary_without_a_word(tmp_path):
    black_white = jpegs(tmp_path / "binary", blocks([0, 255, 0], (64, 96)))
    assert (black_white["faults"], black_white["advice"]["format"]) == ([], "binary")
    assert black_white["overlap"]["share_0"] == pytest.approx(2 / 3, abs=0.02)  # two of three stripes are dark
    levels = jpegs(tmp_path / "levels", blocks([0, 80, 160, 240], (64, 96)))
    assert "gray levels around 80, 160, neither dark nor bright" in levels["faults"][0]["fault"]
    colours = jpegs(tmp_path / "colours", coloured())
    assert [fault["fault"].split(",")[0] for fault in colours["faults"]] == ["holds colours"]
    assert colours["overlap"]["share_0"] == pytest.approx(1 / 2, abs=0.03)  # red alone is bright, as it is in training
    numbers = jpegs(tmp_path / "numbers", blocks([0, 1, 2, 3], (64, 96)))
    assert numbers["advice"]["format"] is None
    assert "No pixel of any mask is bright" in numbers["advice"]["reasons"][0]


def test_soft_borders_are_no_levels_of_classes(tmp_path):
    rows, columns = np.mgrid[:80, :120]
    mask = np.uint8((rows - 40) ** 2 + (columns - 50) ** 2 < 900) * 255
    soft = cv2.resize(mask, (240, 160), interpolation=cv2.INTER_CUBIC)  # twice as large: a few levels, each on borders
    root = write_masks(tmp_path, {f"s{n}": np.repeat(soft[..., None], 3, axis=2) for n in range(4)})
    found = look(root)
    assert (found.report["advice"]["format"], found.report["coding"]["codec"]) == ("binary", "threshold")
    assert [fault["fault"].split(",")[0] for fault in found.report["faults"]] == ["holds masks with soft borders"]
    found.write_page(tmp_path / "r.html")  # draws what is bright, whatever the levels are called
    assert (tmp_path / "r.html").read_text().count("data:image/webp") >= 8


def test_images_that_a_coco_file_names_and_nobody_has(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.jpg", (40, 60), number)
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    listed = [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in range(5)]
    marks = [{"id": n, "image_id": n, "category_id": n % 2, "segmentation": square, "iscrowd": 0} for n in range(5)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": listed, "annotations": marks, "categories": categories}
    (tmp_path / "c.json").write_text(json.dumps(content))
    found = look(None, images=tmp_path / "images", masks=tmp_path / "c.json").report["faults"]
    assert [fault["file"].rpartition("/")[2] for fault in found] == ["c.json (3)", "c.json (4)"]


def test_empty_masks_among_jpegs(tmp_path):
    jpegs(tmp_path, blocks([0, 255, 0], (64, 96)))
    cv2.imwrite(str(tmp_path / "masks" / "s2.jpg"), np.zeros((64, 96), np.uint8))
    assert look(tmp_path).report["empty_masks"] == ["s2"]


def test_image_and_mask_are_not_one_file(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"s{number}.jpg", (40, 60), number)
        write_png(tmp_path / f"s{number}_mask.png", blocks([0, 255]))
    with pytest.raises(ValueError, match=r"s0_mask\.png: lies in the folder of images and in that of masks"):
        look(None, images=tmp_path, masks=tmp_path)
    report = look(None, images=tmp_path, masks=tmp_path, mask_pattern="{stem}_mask").report
    assert (report["images"], report["masks"], report["faults"]) == (4, 4, [])


def test_many_rare_classes_are_not_taken_for_blur(tmp_path):
    masks = {}
    for number in range(6):
        mask = blocks([0, 200], (200, 300))
        for value in range(10, 50):
            row, column = divmod(value - 10, 10)
            mask[20 + 40 * row : 22 + 40 * row, 14 + 28 * column : 16 + 28 * column] = value
        masks[f"s{number}"] = mask
    found = look(write_masks(tmp_path, masks))
    assert found.report["faults"] == []
    assert len(found.report["advice"]["classes"]) == 42


def test_two_ways_to_mark_one_class(tmp_path):
    masks = {f"s{number}": blocks([0, 255]) for number in range(5)} | {"odd": blocks([0, 1])}
    found = look(write_masks(tmp_path, masks))
    assert [f["file"].rpartition("/")[2] for f in found.report["faults"]] == ["odd.png"]
    assert "with 1, most others with 255" in found.report["faults"][0]["fault"]
    advice = found.report["advice"]
    assert advice["format"] == "binary"
    assert advice["masks"]["codec"]["values"] == {0: "background", 255: "foreground", 1: "foreground"}


def test_one_and_255_in_one_mask_are_two_values(tmp_path):
    masks = {f"s{number}": blocks([0, 1, 255]) for number in range(5)}
    advice = look(write_masks(tmp_path, masks)).report["advice"]
    assert advice["format"] == "multiclass"
    assert advice["ignore_candidates"] == [255]
    assert advice["ignored_values"] == []
    assert advice["masks"]["classes"] == [0, 1, 255]


def test_masks_of_mixed_codings(root):
    write_png(root / "masks" / "s1.png", np.uint16(blocks([0, 1, 2])))
    found = faults(root)
    assert [name for name, _ in found] == ["s1.png"]
    assert "16 bits" in found[0][1]


def test_images_of_other_bands(root):
    (root / "images" / "s2.jpg").unlink()
    cv2.imwrite(str(root / "images" / "s2.png"), np.zeros((40, 60), np.uint16))
    found = faults(root)
    assert [name for name, _ in found] == ["s2.png"]
    assert "1 band, most others 3" in found[0][1]


def test_empty_masks_are_a_note_unless_all_are(tmp_path):
    masks = {f"s{number}": blocks([0, 1]) for number in range(4)} | {"e": blocks([0])}
    found = look(write_masks(tmp_path / "some", masks))
    assert found.report["empty_masks"] == ["e"]
    assert found.report["faults"] == []
    assert "1 mask marks no class" in " ".join(found.report["notes"])
    nothing = look(write_masks(tmp_path / "all", {f"s{n}": blocks([0]) for n in range(3)}))
    assert "nothing to learn" in nothing.report["faults"][0]["fault"]
    assert nothing.report["advice"]["format"] is None
    with pytest.raises(ValueError, match="no config to write"):
        nothing.config()


def test_class_files_that_mark_nothing_at_all(tmp_path):
    nothing = np.zeros((20, 30), bool)
    report = look(write_class_files(tmp_path, {"a": {"s": nothing}, "b": {"s": nothing}})).report
    assert "mark no class" in report["faults"][0]["fault"]


def test_one_mask_that_is_one_class_all_over(root):
    write_png(root / "masks" / "s3.png", blocks([2]))
    found = faults(root)
    assert [name for name, _ in found] == ["s3.png"]
    assert "is 2 in every pixel" in found[0][1]
    for number in range(8):
        write_png(root / "masks" / f"s{number}.png", blocks([2]))
    assert faults(root) == []  # a habit of the set


def test_a_class_file_that_is_all_white_and_one_that_is_not(tmp_path):
    part, everywhere = blocks([0, 1]) == 1, blocks([1]) == 1
    planes = {"a": {f"s{n}": part for n in range(8)} | {"w": everywhere}, "b": {f"s{n}": part for n in range(8)}}
    planes["b"]["w"] = np.zeros_like(part)
    # s0 holds one class alone, but not everywhere
    planes["b"]["s0"] = np.zeros_like(part)
    found = look(write_class_files(tmp_path, planes))
    assert set(found.bad) == {("train", "w")}
    assert "is a in every pixel" in found.bad["train", "w"][0].text


def test_an_image_in_two_parts_is_told_and_left_in(tmp_path):
    for part, number in (("train", 6), ("val", 3)):
        write_masks(tmp_path, {f"{part}{n}": blocks([0, 1]) for n in range(number)}, part)
    copy = (tmp_path / "train" / "images" / "train2.jpg").read_bytes()
    (tmp_path / "val" / "images" / "val1.jpg").write_bytes(copy)
    found = look(tmp_path)
    assert found.report["duplicates"] == [{"kind": "exact", "a": "train2", "b": "val1", "parts": ["train", "val"]}]
    assert [f["file"].rpartition("/")[2] for f in found.report["faults"]] == ["val1.jpg"]
    assert found.bad == {}


def test_a_stray_image_has_the_fault_of_its_kind(tmp_path):
    write_masks(tmp_path, GOOD)
    write_image(tmp_path / "images" / "s0.png", (40, 60))
    with pytest.raises(ValueError, match="two images are named 's0'"):
        look(tmp_path)


def test_one_name_for_a_class_that_is_1_here_and_255_there(tmp_path):
    masks = {f"s{n}": blocks([0, 255]) for n in range(6)} | {"odd": blocks([0, 1])}
    found = look(write_masks(tmp_path, masks), ["nucleus"])
    assert (found.report["advice"]["format"], found.report["advice"]["classes"]) == ("binary", ["nucleus"])
    assert set(found.bad) == {("train", "odd")}
