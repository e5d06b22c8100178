from __future__ import annotations

import json

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.metrics.counts import Counts, PixelCounts
from segkit.metrics.scores import SCORE_NAMES, Scores

EXCLUSIVE = MaskFormat.multiclass(["sky", "road", "tree"])
BINARY = MaskFormat.binary("cell")


def _scores(rows, format: MaskFormat) -> Scores:
    rows = torch.tensor(rows, dtype=torch.int64).view(-1, format.num_classes, 4)
    return Scores(Counts(format, rows, torch.arange(len(rows))))


def test_every_score_by_hand():
    # tp 3, fp 2, fn 1, tn 14: six different numbers, so that no mix-up can pass
    scores = _scores([[[3, 2, 1, 14]]], BINARY)
    expected = {
        "iou": 3 / 6,
        "dice": 6 / 9,
        "precision": 3 / 5,
        "recall": 3 / 4,
        "specificity": 14 / 16,
        "accuracy": 17 / 20,
    }
    assert tuple(expected) == SCORE_NAMES
    for name, value in expected.items():
        for average in (scores.pooled(name), scores.per_image(name)):
            assert average.per_class == {"cell": pytest.approx(value)}
            assert average.mean == pytest.approx(value)


def test_pooled_and_per_image_differ():
    # a large image with a good answer and a small one with a bad answer
    scores = _scores([[[90, 5, 5, 0]], [[1, 3, 0, 6]]], BINARY)
    assert scores.images == 2
    assert scores.pooled("iou").mean == pytest.approx(91 / 104)
    assert scores.per_image("iou").mean == pytest.approx((90 / 100 + 1 / 4) / 2)
    assert scores.pooled("dice").mean == pytest.approx(182 / 195)
    assert scores.per_image("dice").mean == pytest.approx((180 / 190 + 2 / 5) / 2)


def test_a_class_absent_from_both_sides_has_no_score():
    """SMP scores it 1, torchmetrics Jaccard 0, Dice NaN, MeanIoU -1."""
    scores = _scores([[[3, 1, 0, 4], [0, 0, 0, 8], [4, 0, 1, 3]]], EXCLUSIVE)
    assert scores.absent == ["road"]
    for name in SCORE_NAMES:
        for average in (scores.pooled(name), scores.per_image(name)):
            assert average.per_class["road"] is None
            assert average.mean == pytest.approx((average.per_class["sky"] + average.per_class["tree"]) / 2)
    assert scores.pooled("iou").mean == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_a_class_predicted_but_absent_from_the_truth_scores_zero():
    """MONAI drops it, Ultralytics excludes it."""
    scores = _scores([[[3, 1, 3, 2], [0, 3, 0, 6], [2, 0, 1, 6]]], EXCLUSIVE)
    assert scores.absent == []
    for name in ("iou", "dice", "precision", "recall"):
        assert scores.pooled(name).per_class["road"] == 0.0
        assert scores.per_image(name).per_class["road"] == 0.0
    assert scores.pooled("iou").mean == pytest.approx((3 / 7 + 0 + 2 / 3) / 3)


def test_a_class_that_was_missed_altogether_has_precision_zero():
    scores = _scores([[[0, 0, 5, 3]]], BINARY)
    assert scores.pooled("precision").mean == 0.0
    assert scores.pooled("recall").mean == 0.0


def test_no_negatives_no_specificity():
    scores = _scores([[[5, 0, 3, 0]], [[1, 1, 0, 3]]], BINARY)
    assert _scores([[[5, 0, 3, 0]]], BINARY).pooled("specificity").mean is None
    assert scores.per_image("specificity").mean == pytest.approx(3 / 4)  # of the only image that has one


def test_per_image_averages_over_the_images_where_the_class_occurs():
    # sky is in image 0 only, road is predicted in image 1 only, tree is everywhere
    scores = _scores(
        [[[2, 2, 0, 4], [0, 0, 0, 8], [4, 0, 2, 2]], [[0, 0, 0, 8], [0, 2, 0, 6], [6, 0, 2, 0]]],
        EXCLUSIVE,
    )
    iou = scores.per_image("iou")
    assert iou.per_class == pytest.approx({"sky": 2 / 4, "road": 0.0, "tree": (4 / 6 + 6 / 8) / 2})
    # Over classes; a mean over images first would be ((1/2 + 2/3) / 2 + (0 + 3/4) / 2) / 2.
    assert iou.mean == pytest.approx((2 / 4 + 0 + (4 / 6 + 6 / 8) / 2) / 3)


def test_agrees_with_torchmetrics_where_every_class_is_present():
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

    random = torch.Generator().manual_seed(0)
    pred, target = (torch.randint(0, 3, (4, 1, 9, 8), generator=random, dtype=torch.uint8) for _ in "ab")
    target[:, :, 2] = 255
    metric = PixelCounts(EXCLUSIVE)
    metric.update(pred, target)
    scores = Scores(metric.compute())
    for name, peer in (("iou", multiclass_jaccard_index), ("dice", multiclass_f1_score)):
        expected = peer(pred[:, 0].long(), target[:, 0].long(), 3, average=None, ignore_index=255).tolist()
        assert list(scores.pooled(name).per_class.values()) == pytest.approx(expected)
        assert scores.pooled(name).mean == pytest.approx(sum(expected) / 3)
    assert scores.micro_recall == pytest.approx((pred == target).sum().item() / (target != 255).sum().item())


def test_large_counts_are_exact():
    # 3·10^15 pixels: float32 would lose the one that is wrong
    scores = _scores([[[3 * 10**15, 1, 0, 0]]], BINARY)
    assert 0 < 1 - scores.pooled("iou").mean < 1e-15


def test_json_is_the_contract():
    scores = _scores([[[3, 1, 0, 4], [0, 0, 0, 8], [4, 0, 1, 3]]], EXCLUSIVE)
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert list(values) == ["format", "images", "absent", "pooled", "per_image"]
    assert (values["format"], values["images"], values["absent"]) == ("multiclass", 1, ["road"])
    for average in ("pooled", "per_image"):
        assert list(values[average]) == list(SCORE_NAMES)
        assert values[average]["iou"]["per_class"] == {"sky": 0.75, "road": None, "tree": 0.8}
        assert values[average]["iou"]["mean"] == pytest.approx(0.775)
    assert _scores([[[1, 0, 0, 0]]], BINARY).to_dict()["format"] == "binary"


def test_means_by_one_name():
    scores = _scores([[[90, 5, 5, 0]], [[1, 3, 0, 6]]], BINARY)
    means = scores.means()
    assert len(means) == 2 * len(SCORE_NAMES)
    assert means["pooled_iou"] == scores.pooled("iou").mean
    assert means["per_image_dice"] == scores.per_image("dice").mean


@pytest.mark.parametrize("rows", [[], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
def test_without_a_pixel_nothing_is_known(rows):
    scores = _scores(rows, EXCLUSIVE)
    assert scores.absent == ["sky", "road", "tree"]
    assert set(scores.means().values()) == {None}
    assert scores.micro_recall is None
    json.dumps(scores.to_dict(), allow_nan=False)


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="score 'miou' is not known: expected one of iou, dice"):
        _scores([[[1, 0, 0, 0]]], BINARY).pooled("miou")
