"""Class weights, crop, batch and split, by hand."""

from __future__ import annotations

import math
import re

import pytest

from segkit.data.splits import split_stems
from segkit.formats.mask_format import MaskFormat
from segkit.inspection.advice import pick_batch, pick_crop
from segkit.losses.class_weights import parse_class_weights
from tests.inspection.sets import blocks, look, write_class_files, write_masks


def test_class_weights_by_hand(tmp_path):
    # 0 fills a and 3 of 4 stripes of b: frequency 7/8; 1 one stripe of b, where it is: 1/4; 2 no mask.
    masks = {"a": blocks([0]), "b": blocks([0, 0, 0, 1])}
    advice = look(write_masks(tmp_path, masks), {0: "sky", 1: "road", 2: "car"}).report["advice"]
    middle = (7 / 8 + 1 / 4) / 2
    expected = [math.sqrt(middle / (7 / 8)), math.sqrt(middle / (1 / 4)), 1.0]
    assert advice["class_weights"] == pytest.approx(expected, abs=0.005)
    format = MaskFormat.multiclass(advice["classes"])
    assert parse_class_weights(advice["class_weights"], format).tolist() == pytest.approx(advice["class_weights"])


def test_a_class_of_a_thousandth_weighs_ten_at_most(tmp_path):
    mask = blocks([0, 1, 2], (100, 300))
    mask[0, :3] = 3  # one pixel of ten thousand
    weights = look(write_masks(tmp_path, {"a": mask})).report["advice"]["class_weights"]
    assert weights[:3] == [1.0, 1.0, 1.0]
    assert weights[3] == 10.0


def test_classes_with_a_sigmoid_weigh_the_same(tmp_path):
    left, right = blocks([1, 1, 0]) == 1, blocks([0, 1, 0]) == 1
    report = look(write_class_files(tmp_path, {"l": {"a": left}, "r": {"a": right}})).report
    assert report["advice"]["class_weights"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(360, 480)] * 9, 352),
        ([(1024, 2048)] * 9, 512),
        ([(240, 240)], 224),
        ([(35, 50)] * 10, 64),
        ([(101, 100)], 128),
        ([(256, 300)] * 9 + [(64, 64)], 256),  # one of ten may be smaller,
        ([(256, 300)] * 8 + [(64, 64)], 128),  # one of nine not
        ([], None),
    ],
)
def test_crops_are_multiples_of_32_that_most_images_hold(sizes, crop):
    assert pick_crop(sizes) == crop


@pytest.mark.parametrize(
    ("crop", "images", "batch"), [(320, 500, 8), (512, 500, 2), (352, 500, 4), (64, 500, 16), (64, 5, 4), (256, 1, 2)]
)
def test_batches_hold_the_pixels_of_eight_crops_of_320(crop, images, batch):
    assert pick_batch(crop, images) == batch


@pytest.mark.parametrize(
    ("stems", "groups"),
    [
        ([f"pat{p:02d}_z{z:03d}" for p in range(3) for z in range(4)], {"pat00", "pat01", "pat02"}),
        ([f"Image_{n:02d}{side}" for n in range(4) for side in "LR"], {f"Image_{n:02d}" for n in range(4)}),
        ([f"{town}/{n}" for town in "abcd" for n in range(5)], set("abcd")),
        ([f"Seq{s}_f{n:05d}" for s in range(5) for n in range(6)], {f"Seq{s}" for s in range(5)}),
        ([f"IMG_{n:04d}" for n in range(9)], None),  # one camera is not one film
        ([f"{n:08x}" for n in range(9)], None),
    ],
)
def test_images_of_one_person_or_film_stay_together(tmp_path, stems, groups):
    data = look(write_masks(tmp_path, {stem: blocks([0, 1]) for stem in stems}))
    val = data.advice.val
    assert val["from"] == "train"
    if groups is None:
        assert "group" not in val
        return
    assert {re.search(val["group"], stem).group(1) for stem in stems} == groups
    train, part = split_stems(stems, val["fraction"], 0, val["group"])
    assert set(train).isdisjoint(part)


def test_a_set_with_a_val_part_keeps_it(tmp_path):
    for part in ("train", "val"):
        write_masks(tmp_path, {f"{part}{n}": blocks([0, 1]) for n in range(3)}, part)
    found = look(tmp_path)
    assert found.advice.val is None
    assert found.report["parts"] == {"train": 3, "val": 3}
