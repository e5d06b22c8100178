"""Intervals hold the true score as often as they say, and differences are told from chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from segkit import MaskFormat
from segkit.metrics.counts import Counts
from segkit.metrics.definitions import define_score
from segkit.metrics.uncertainty import bootstrap_score, compare_scores

FORMAT = MaskFormat.multiclass(["road", "car", "sign"])


def draw(rng, images, skill=0.8, size=400):
    """Counts of images of which each holds another share of each class, and is easier or harder than the next."""
    areas = rng.dirichlet([6.0, 3.0, 1.5], images) * size
    truth = np.round(areas)
    hard = rng.beta(skill * 12, (1 - skill) * 12, (images, 1))
    tp = np.round(truth * hard)
    fn = truth - tp
    fp = np.roll(fn, 1, axis=1)
    tn = truth.sum(1, keepdims=True) - tp - fn - fp
    rows = torch.from_numpy(np.stack([tp, fp, fn, tn], -1)).long()
    return Counts(FORMAT, rows, torch.arange(images))


@pytest.mark.parametrize("average", ["pooled", "per_image"])
def test_intervals_cover_the_true_score_at_their_rate(average):
    true = define_score(draw(np.random.default_rng(0), 200_000), "iou", average).mean
    trials, rng = 400, np.random.default_rng(1)
    covered = 0
    for trial in range(trials):
        found = bootstrap_score(draw(rng, 40), "iou", average, level=0.9, repeats=500, seed=trial).mean
        covered += found.low <= true <= found.high
    # Refused only if the rate were farther from 0.9 than chance allows in one of 1000 runs of this test; the seeds are
    # fixed. An interval that is too wide fails as one that is too narrow does.
    assert binomtest(covered, trials, 0.9).pvalue > 1e-3, covered / trials


def test_groups_of_like_images_give_wider_intervals():
    one = draw(np.random.default_rng(3), 12)
    copies = Counts(FORMAT, one.rows.repeat_interleave(10, 0), torch.arange(120))
    groups = [str(number // 10) for number in range(120)]
    as_images = bootstrap_score(copies, "dice").mean
    as_groups = bootstrap_score(copies, "dice", groups=groups).mean
    alone = bootstrap_score(one, "dice").mean
    assert as_groups.value == pytest.approx(as_images.value)
    assert as_groups.high - as_groups.low > 2 * (as_images.high - as_images.low)
    assert (as_groups.low, as_groups.high) == pytest.approx((alone.low, alone.high))


def test_the_value_is_the_score_itself_and_lies_between():
    counts = draw(np.random.default_rng(5), 30)
    for average in ("pooled", "per_image"):
        found = bootstrap_score(counts, "dice", average)
        scores = define_score(counts, "dice", average)
        assert found.mean.value == pytest.approx(scores.mean)
        for name, interval in found.per_class.items():
            assert interval.value == pytest.approx(scores.per_class[name])
            assert interval.low < interval.value < interval.high
    assert bootstrap_score(counts, seed=1) == bootstrap_score(counts, seed=1)
    assert bootstrap_score(counts, seed=1) != bootstrap_score(counts, seed=2)


def test_absent_classes_and_single_images_have_no_interval():
    counts = draw(np.random.default_rng(6), 20)
    counts.rows[:, 2] = torch.tensor([0, 0, 0, 400])
    absent = bootstrap_score(counts).per_class["sign"]
    assert (absent.value, absent.low, absent.high) == (None, None, None)
    single = bootstrap_score(Counts(FORMAT, counts.rows[:1], torch.arange(1)))
    assert single.mean.value is not None
    assert (single.mean.low, single.mean.high) == (None, None)


def test_a_class_of_one_image_keeps_its_interval_from_the_draws_that_hold_it():
    counts = draw(np.random.default_rng(7), 15)
    counts.rows[1:, 2] = torch.tensor([0, 0, 0, 400])
    found = bootstrap_score(counts).per_class["sign"]
    assert found.low == found.value == found.high


def test_a_better_model_is_told_from_an_equal_one():
    first = draw(np.random.default_rng(8), 60)
    better = first.rows.clone()
    gain = (better[..., 2] * 0.3).long()
    better[..., 0] += gain
    better[..., 2] -= gain
    found = compare_scores(first, Counts(FORMAT, better, torch.arange(60)), "dice")
    assert found.mean.low > 0
    assert found.mean.p_value < 0.01
    same = compare_scores(first, first, "dice")
    assert (same.mean.value, same.mean.low, same.mean.high, same.mean.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_of_equal_models_are_spread_evenly():
    """Two models that err on different pixels at the same rate: p below 0.1 in one of ten comparisons."""
    rng, trials = np.random.default_rng(9), 300
    small = 0
    for trial in range(trials):
        base = draw(rng, 25)
        other = base.rows.clone()
        swing = rng.integers(-8, 9, (25, 3))
        moved = torch.from_numpy(np.clip(swing, -base.rows[..., 0].numpy(), base.rows[..., 2].numpy()))
        other[..., 0] += moved
        other[..., 2] -= moved
        pair = [base, Counts(FORMAT, other, torch.arange(25))]
        if rng.random() < 0.5:
            pair.reverse()
        small += compare_scores(*pair, "dice", repeats=300, seed=trial).mean.p_value < 0.1
    assert binomtest(small, trials, 0.1).pvalue > 1e-3, small / trials


def test_what_cannot_be_compared_is_refused():
    counts = draw(np.random.default_rng(10), 5)
    other = Counts(MaskFormat.multiclass(["road", "car", "tree"]), counts.rows, counts.indices)
    with pytest.raises(ValueError, match="same classes"):
        compare_scores(counts, other)
    with pytest.raises(ValueError, match="same images"):
        compare_scores(counts, Counts(FORMAT, counts.rows, counts.indices + 1))
    rows = counts.rows.clone()
    rows[3, 1, 2] += 1
    with pytest.raises(ValueError, match="image number 3 has another truth"):
        compare_scores(counts, Counts(FORMAT, rows, counts.indices))
    with pytest.raises(ValueError, match="has no interval"):
        bootstrap_score(counts, average="micro")
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_score(counts, level=95)
