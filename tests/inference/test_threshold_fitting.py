from __future__ import annotations

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.inference.threshold_fitting import Criterion, Curves, fit_thresholds, threshold_candidates
from segkit.metrics.counts import Counts
from segkit.metrics.scores import Scores

OVERLAPPING = MaskFormat.multilabel(["a", "b"], thresholds=[0.5, 0.3335])
SHARED = MaskFormat.multiclass(["a", "b", "c"], "sigmoid")
CRITERIA = ["pooled_dice", "pooled_iou", "per_image_dice", "per_image_iou"]


def images(format: MaskFormat, count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(logits, target) of images of several sizes; some pixels ignored, some logits exactly at a threshold."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        size = (1, format.num_classes, 5 + number, 7)
        logits = torch.randn(size, generator=generator)
        logits[0, :, 0] = 0.0
        target = format.decode(logits + torch.randn(size, generator=generator))
        target[..., 1, :2] = format.ignore_index
        found.append((logits, target))
    return found


def scores_at(format: MaskFormat, several: list, threshold: float | None) -> Scores:
    """By decoding and counting, as `evaluate` does."""
    decoding = format.with_thresholds([threshold] * len(format.threshold_groups))
    rows = [decoding.count(decoding.decode(logits), target) for logits, target in several]
    return Scores(Counts(format, torch.cat(rows), torch.arange(len(rows))))


@pytest.mark.parametrize("format", [OVERLAPPING, SHARED, MaskFormat.binary("a")], ids=MaskFormat.describe)
@pytest.mark.parametrize("text", CRITERIA)
def test_every_candidate_is_scored_as_if_it_were_decoded(format, text):
    several, criterion = images(format), Criterion.parse(text)
    candidates = threshold_candidates(format)
    halves = [Curves(format, candidates, criterion) for _ in range(2)]
    for number, (logits, target) in enumerate(several):
        halves[number % 2].add(logits, target)
    curves = halves[0].plus(halves[1:])
    every = list(range(format.num_classes))
    for threshold in (candidates[0], 0.001, 0.3, 0.5, 0.613, 0.999):
        expected = getattr(scores_at(format, several, threshold), criterion.average)(criterion.score)
        found = curves.scores(every)[candidates.index(threshold)]
        assert float(found) == pytest.approx(expected.mean, abs=1e-12), threshold
        one = curves.scores([every[-1]])[candidates.index(threshold)]
        assert float(one) == pytest.approx(expected.per_class[format.names[-1]], abs=1e-12, nan_ok=True)


def test_candidates_hold_what_the_format_has():
    assert threshold_candidates(OVERLAPPING)[333:336] == [0.3335, 0.334, 0.335]
    assert threshold_candidates(SHARED)[:2] == [None, 0.001]
    assert len(threshold_candidates(MaskFormat.binary("a"))) == 999


def column(logits: list[float], truth: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(logits).view(1, 1, 1, -1), torch.tensor(truth, dtype=torch.uint8).view(1, 1, 1, -1)


def folded(format: MaskFormat, folds: list[list], text: str = "pooled_dice") -> list[Curves]:
    found = []
    for several in folds:
        curves = Curves(format, threshold_candidates(format), Criterion.parse(text))
        for logits, target in several:
            curves.add(logits, target)
        found.append(curves)
    return found


def test_a_threshold_that_all_folds_choose_is_kept():
    """All logits of true pixels are -1 and 2, of others -2: between 0.12 and 0.27 every pixel is right."""
    format = MaskFormat.binary("a")
    image = column([-2.0, -2.0, -1.0, 2.0], [0, 0, 1, 1])
    (choice,), final, by_fold = fit_thresholds(folded(format, [[image], [image, image], [image]]), format)
    assert choice.kept
    assert choice.score_before == pytest.approx(2 / 3)  # tp 1, fn 1 of each
    assert choice.cross_fitted == choice.plain == 1.0
    # Of equal candidates the nearest to the one before: the last below sigmoid(-1) = 0.2689.
    assert final.thresholds == (0.268,)
    assert [f.thresholds for f in by_fold] == [(0.268,)] * 3


def test_a_threshold_that_one_image_alone_wants_is_not_kept():
    """The large image would gain by a low threshold, all small ones lose by it; alone in its fold, it gets theirs."""
    format = MaskFormat.binary("a")
    small = column([-1.0, -1.0, 1.0], [0, 0, 1])
    large = column([-1.0] * 20 + [1.0], [1] * 21)
    (choice,), final, by_fold = fit_thresholds(folded(format, [[small] * 3, [large], [small] * 3]), format)
    assert choice.best < 0.2689
    assert choice.plain > choice.score_before > choice.cross_fitted
    assert not choice.kept
    assert final == format
    assert by_fold == [format] * 3


def test_thresholds_of_classes_are_kept_each_for_itself():
    format = MaskFormat.multilabel(["low", "fine", "absent"])
    logits = torch.tensor([[-2.0, -1.0, 2.0], [-1.0, 1.0, 2.0], [-1.0, -1.0, -1.0]]).view(1, 3, 1, 3)
    target = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0]], dtype=torch.uint8).view(1, 3, 1, 3)
    choices, final, _ = fit_thresholds(folded(format, [[(logits, target)], [(logits, target)]]), format)
    assert [choice.kept for choice in choices] == [True, False, False]
    assert final.thresholds == (0.268, 0.5, 0.5)
    assert choices[2].cross_fitted is None
    assert choices[2].to_dict()["classes"] == ["absent"]


def test_one_vs_rest_classes_may_get_a_threshold_and_stay_without():
    """A best class of -1 is wrong each time, so that none is better there; without such pixels none is not."""
    unsure = torch.tensor([[2.0, -1.0, -2.0], [-2.0, -2.0, 2.0]]).view(1, 2, 1, 3)
    for truth, expected in (([0, 1, 1], 0.269), ([0, 0, 1], None)):
        format = MaskFormat.multiclass(["a", "b"], "sigmoid")
        image = (unsure, torch.tensor(truth, dtype=torch.uint8).view(1, 1, 1, 3))
        (choice,), final, _ = fit_thresholds(folded(format, [[image], [image]]), format)
        assert (final.threshold, choice.kept) == (expected, expected is not None)


def test_a_class_that_the_truth_lacks_is_not_silenced_by_a_threshold():
    """A false pixel of c is unsure: above it, the mean would be over two classes in place of three."""
    format = MaskFormat.multiclass(["a", "b", "c"], "sigmoid")
    logits = torch.tensor([[2.0, -3.0, -3.0], [-3.0, 2.0, -3.0], [-3.0, -3.0, -1.0]]).view(1, 3, 1, 3)
    image = (logits, torch.tensor([0, 1, 1], dtype=torch.uint8).view(1, 1, 1, 3))
    (choice,), final, _ = fit_thresholds(folded(format, [[image], [image]]), format)
    assert final == format
    assert choice.best is None
    assert choice.score_before == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("text", ["dice", "pooled_precision", "mean_dice", ""])
def test_unknown_criteria_are_refused(text):
    with pytest.raises(ValueError, match="expected pooled_dice, pooled_iou"):
        Criterion.parse(text)
    assert [str(Criterion.parse(known)) for known in CRITERIA] == CRITERIA
