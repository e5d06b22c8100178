"""Definitions of scores, by hand."""

from __future__ import annotations

import pytest
import torch

from segkit import MaskFormat
from segkit.metrics.counts import Counts
from segkit.metrics.definitions import define_score
from segkit.metrics.scores import Scores

FORMAT = MaskFormat.multiclass(["background", "liver", "spleen", "kidney"])
# [tp, fp, fn, tn]. Kidney is nowhere. Spleen is predicted in the second image, where the truth has none.
ROWS = torch.tensor(
    [
        [[60, 10, 0, 30], [20, 0, 10, 70], [10, 0, 0, 90], [0, 0, 0, 100]],
        [[80, 0, 10, 10], [10, 2, 0, 88], [0, 8, 0, 92], [0, 0, 0, 100]],
        [[90, 5, 0, 5], [0, 0, 5, 95], [0, 0, 0, 100], [0, 0, 0, 100]],
    ]
)
COUNTS = Counts(FORMAT, ROWS, torch.arange(3))


def test_pooled_leaves_out_the_absent_class():
    scores = define_score(COUNTS, "iou")
    expected = {"background": 230 / 255, "liver": 30 / 47, "spleen": 10 / 18, "kidney": None}
    assert scores.per_class == {name: pytest.approx(value) for name, value in expected.items()}
    assert scores.mean == pytest.approx((230 / 255 + 30 / 47 + 10 / 18) / 3)
    assert scores == Scores(COUNTS).pooled("iou")


@pytest.mark.parametrize(("empty", "of_kidney"), [("one", 1.0), ("zero", 0.0)])
def test_an_absent_class_counts_as_the_rule_says(empty, of_kidney):
    scores = define_score(COUNTS, "iou", empty=empty)
    assert scores.per_class["kidney"] == of_kidney
    assert scores.mean == pytest.approx((230 / 255 + 30 / 47 + 10 / 18 + of_kidney) / 4)


def test_per_image_averages_images_then_classes():
    scores = define_score(COUNTS, "dice", "per_image")
    liver = (40 / 50 + 20 / 22 + 0) / 3
    assert scores.per_class["liver"] == pytest.approx(liver)
    assert scores.per_class["spleen"] == pytest.approx((1 + 0) / 2)  # made up in the second image, absent in the third
    with_ones = define_score(COUNTS, "dice", "per_image", empty="one")
    assert with_ones.per_class["spleen"] == pytest.approx((1 + 0 + 1) / 3)
    assert scores == Scores(COUNTS).per_image("dice")


def test_micro_sums_classes_first():
    tp, fp, fn = 230 + 30 + 10, 15 + 2 + 8, 10 + 15 + 0
    assert define_score(COUNTS, "iou", "micro").mean == pytest.approx(tp / (tp + fp + fn))
    assert define_score(COUNTS, "iou", "micro", foreground_only=True).mean == pytest.approx(40 / (40 + 10 + 15))


def test_per_group_sums_the_images_of_a_group_first():
    scores = define_score(COUNTS, "iou", "per_group", groups=["a", "b", "a"])
    assert scores.per_class["liver"] == pytest.approx((20 / 35 + 10 / 12) / 2)
    assert scores.per_class["spleen"] == pytest.approx((10 / 10 + 0) / 2)


def test_foreground_only_leaves_background_out():
    scores = define_score(COUNTS, "iou", foreground_only=True)
    assert "background" not in scores.per_class
    assert scores.mean == pytest.approx((30 / 47 + 10 / 18) / 2)


def test_frequency_weighted_is_weighted_by_truth():
    weights, scores = (240, 45, 10), (230 / 255, 30 / 47, 10 / 18)
    expected = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
    assert define_score(COUNTS, "iou", frequency_weighted=True).mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"average": "macro"}, "average 'macro' is not known"),
        ({"empty": "leave-out"}, "Did you mean `leave_out`"),
        ({"name": "jaccard"}, "expected one of iou"),
        ({"average": "per_group"}, "`groups` go with the average per_group"),
        ({"groups": ["a", "b", "c"]}, "`groups` go with the average per_group"),
        ({"average": "per_group", "groups": ["a"]}, "1 groups for 3 images"),
        ({"average": "micro", "frequency_weighted": True}, "no class has a weight"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        define_score(COUNTS, **options)


def test_a_format_of_background_alone_has_no_foreground():
    counts = Counts(MaskFormat.multiclass(["background"]), ROWS[:, :1], torch.arange(3))
    with pytest.raises(ValueError, match="nothing is left"):
        define_score(counts, foreground_only=True)
