"""Masks that number objects are not called masks of so many classes."""

from __future__ import annotations

import numpy as np

from segkit.config import read_config, write_config
from segkit.parts import open_masks, open_part
from tests.inspection.sets import blocks, look, write_masks


def cells(count: int, first: int = 1) -> np.ndarray:
    """(64, 96) uint16 of squares in rows of eight, numbered from `first`."""
    mask = np.zeros((64, 96), np.uint16)
    for number in range(count):
        row, column = divmod(number, 8)
        mask[4 + 12 * row : 12 + 12 * row, 4 + 12 * column : 12 + 12 * column] = first + number
    return mask


def test_objects_that_count_from_one_are_one_class_against_the_rest(tmp_path):
    masks = {f"s{n}": cells(n + 5) for n in range(10)}
    found = look(write_masks(tmp_path / "data", masks))
    advice = found.report["advice"]
    assert (advice["format"], advice["activation"], advice["classes"]) == ("binary", "sigmoid", ["foreground"])
    assert "14 numbers in all" in advice["reasons"][0]
    assert found.report["overlap"]["share_1"] * 10 * 64 * 96 == sum(64 * (n + 5) for n in range(10))
    write_config(tmp_path / "c.yaml", found.config())
    config = read_config(tmp_path / "c.yaml")
    train = open_part(config, "train", open_masks(config))
    planes = train.read(0).planes[..., 0]
    assert (planes.max(), planes.sum()) == (1, (int(train.stems[0][1:]) + 5) * 64)


def test_numbers_that_come_back_in_no_other_mask_are_objects(tmp_path):
    assert (
        look(write_masks(tmp_path, {f"s{n}": cells(6, 1 + 10 * n) for n in range(5)})).report["advice"]["format"]
        == "binary"
    )


def test_classes_stay_classes(tmp_path):
    named = look(
        write_masks(tmp_path / "named", {f"s{n}": cells(n + 5) for n in range(10)}), {n: f"c{n}" for n in range(15)}
    )
    assert len(named.report["advice"]["classes"]) == 15
    everywhere = look(write_masks(tmp_path / "all", {f"s{n}": blocks(list(range(12)), (48, 72)) for n in range(6)}))
    assert len(everywhere.report["advice"]["classes"]) == 12
    torn = {f"s{n}": np.tile(cells(n + 5), (1, 2)) for n in range(10)}  # every number on two pieces
    assert len(look(write_masks(tmp_path / "torn", torn)).report["advice"]["classes"]) == 15
