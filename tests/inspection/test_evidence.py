"""Overlap, containment and classes that never meet."""

from __future__ import annotations

import numpy as np
import pytest

from segkit.inspection.evidence import Overlap
from tests.inspection.sets import blocks, look, write_class_files, write_masks


def disc(radius: float, size: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < radius**2


def test_nested_classes_are_found_with_their_order(tmp_path):
    whole, core, spot = disc(15), disc(10), disc(5)
    planes = {"core": {"a": core}, "spot": {"a": spot}, "whole": {"a": whole}}
    report = look(write_class_files(tmp_path, planes)).report
    assert report["advice"]["classes"] == ["whole", "core", "spot"]
    found = {(entry["inner"], entry["outer"]): entry["share"] for entry in report["overlap"]["containment"]}
    assert found == {("core", "whole"): 1.0, ("spot", "whole"): 1.0, ("spot", "core"): 1.0}
    assert "whole ⊃ core ⊃ spot" in report["advice"]["reasons"][0]
    overlap = report["overlap"]
    assert overlap["share_0"] == pytest.approx(1 - whole.mean())
    assert overlap["share_1"] == pytest.approx((whole & ~core).mean())
    assert overlap["share_2_or_more"] == pytest.approx(core.mean())
    pair = next(p for p in overlap["pairs"] if {p["a"], p["b"]} == {"core", "whole"})
    assert pair["pixels"] == core.sum()
    assert pair["iou"] == pytest.approx(core.sum() / whole.sum())


def test_chains_leave_out_what_an_inner_class_says_already():
    containment = [("b", "a", 1.0), ("c", "a", 1.0), ("c", "b", 1.0), ("y", "x", 0.97), ("z", "x", 0.99)]
    assert Overlap((0, 0, 0), containment=containment).chains == [("a", "b", "c"), ("x", "y"), ("x", "z")]


def test_half_an_overlap_is_no_containment(tmp_path):
    left, right = blocks([1, 1, 0, 0]) == 1, blocks([0, 1, 1, 0]) == 1
    report = look(write_class_files(tmp_path, {"l": {"a": left}, "r": {"a": right}})).report
    pair = report["overlap"]["pairs"][0]
    assert (pair["iou"], pair["share_of_a"], pair["share_of_b"]) == pytest.approx((1 / 3, 1 / 2, 1 / 2))
    assert report["overlap"]["containment"] == []
    assert (report["advice"]["format"], report["advice"]["activation"]) == ("multilabel", "sigmoid")


def test_classes_that_never_meet_are_named_once_chance_would_have_them_meet(tmp_path):
    # 1 and 2 in six images each of twelve: chance alone expects them together in three.
    masks = {f"s{n}": blocks([0, 1 + n % 2]) for n in range(12)}
    report = look(write_masks(tmp_path, masks)).report
    assert report["overlap"]["never_together"] == [["1", "2"]]
    fewer = {f"s{n}": blocks([0, 1 + n % 2]) for n in range(10)}
    assert look(write_masks(tmp_path / "fewer", fewer)).report["overlap"]["never_together"] == []


def test_one_number_per_pixel_never_holds_two_labels(tmp_path):
    report = look(write_masks(tmp_path, {"a": blocks([0, 1, 2])}), ["sky", "road", "ignore"]).report
    shares = [report["overlap"][key] for key in ("share_0", "share_1", "share_2_or_more")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 0])


def test_without_masks_there_are_no_shares():
    assert Overlap((0, 0, 0)).shares is None
