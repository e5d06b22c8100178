"""How sure a score is: bootstrap intervals over images or groups, and paired differences of two models.

Images (or groups, such as patients, whose images are alike) are drawn anew with replacement and the score is made of
each draw. As scores come from counts, a draw is a vector of how often each image was taken, and all draws are one
matrix product. Intervals are BCa (Efron 1987, *Better bootstrap confidence intervals*), corrected for bias and
skewness, which pooled ratios of few images have; the p-value of a difference is that of a permutation test, which
exchanges the two models' counts of each image at random (Fisher 1935).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from segkit.metrics.counts import Counts
from segkit.metrics.definitions import sum_groups
from segkit.metrics.scores import ratio
from segkit.suggest import closest

REPEATS = 2000
# Draws that are computed at a time: of 5000 images, 20 MB.
_CHUNK = 512
_SCORED = ("pooled", "per_image")


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, and where the true one may lie.

    Attributes:
        value: of the data as they are; None where there is no score.
        low, high: ends of the interval; None where there is none, as for fewer than two images.
        p_value: of a difference, the chance of one as large if the models were alike; None for a score.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None = None


@dataclass(frozen=True)
class Intervals:
    """Of the mean over classes, and of each class."""

    mean: Interval
    per_class: dict[str, Interval]


def bootstrap_score(
    counts: Counts,
    name: str = "iou",
    average: str = "pooled",
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Intervals:
    """Confidence intervals of a score.

    Args:
        name: one of `segkit.metrics.scores.SCORE_NAMES`.
        average: pooled or per_image.
        groups: (n,) name of the group of each image: groups are drawn, and with `per_image` scored, as wholes. None
            draws images.
        level: share of such intervals that hold the true score, in (0, 1).
        repeats: draws; the ends of 95 % intervals of 2000 vary by about a tenth of their half width.
    """
    rows = _units(counts, groups)
    statistic = _statistic(rows, name, average)
    return _intervals(statistic, len(rows), counts.format.names, level, repeats, seed)


def compare_scores(
    first: Counts,
    second: Counts,
    name: str = "iou",
    average: str = "pooled",
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Intervals:
    """Differences `second` - `first` of two models on the same images, with intervals and p-values.

    Raises:
        ValueError: not the same classes, images or truths.
    """
    _check_paired(first, second)
    pair = [_units(counts, groups) for counts in (first, second)]
    of_first, of_second = (_statistic(rows, name, average) for rows in pair)

    def difference(weights: Tensor) -> Tensor:
        return of_second(weights) - of_first(weights)

    found = _intervals(difference, len(pair[0]), first.format.names, level, repeats, seed)
    p_values = _permutation_p_values(pair, name, average, repeats, seed)
    with_p = [
        Interval(interval.value, interval.low, interval.high, None if interval.value is None else p_value)
        for interval, p_value in zip([*found.per_class.values(), found.mean], p_values, strict=True)
    ]
    return Intervals(with_p[-1], dict(zip(found.per_class, with_p, strict=False)))


def _units(counts: Counts, groups: Sequence[str] | None) -> Tensor:
    return counts.rows if groups is None else sum_groups(counts.rows, groups)


def _check_paired(first: Counts, second: Counts) -> None:
    if first.format.names != second.format.names:
        raise ValueError(
            f"the first scores {list(first.format.names)}, the second {list(second.format.names)}: only scores of the "
            "same classes can be compared."
        )
    if not torch.equal(first.indices, second.indices):
        raise ValueError(f"{len(first)} and {len(second)} images, or others: only the same images can be compared.")
    truths = [
        torch.stack([rows[..., 0] + rows[..., 2], rows[..., 1] + rows[..., 3]], -1)
        for rows in (first.rows, second.rows)
    ]
    differ = (truths[0] != truths[1]).flatten(1).any(1)
    if differ.any():
        raise ValueError(
            f"image number {int(first.indices[differ][0])} has another truth in the second: score both on "
            "the same masks."
        )


Statistic = Callable[[Tensor], Tensor]


def _statistic(rows: Tensor, name: str, average: str) -> Statistic:
    """(r, n) float64 weights of the images to (r, C + 1) scores: of each class, and their mean."""
    if average not in _SCORED:
        raise ValueError(f"average {average!r} has no interval. {closest(average, _SCORED)}")
    if average == "pooled":
        flat = rows.flatten(1).double()

        def by_class(weights: Tensor) -> Tensor:
            return ratio(name, (weights @ flat).unflatten(1, rows.shape[1:]))
    else:
        scores = ratio(name, rows)
        there, values = (~scores.isnan()).double(), scores.nan_to_num(0.0)

        def by_class(weights: Tensor) -> Tensor:
            return (weights @ values) / (weights @ there)  # 0 / 0 is NaN: no image with the class was drawn

    def with_mean(weights: Tensor) -> Tensor:
        classes = by_class(weights)
        return torch.cat([classes, classes.nanmean(1, keepdim=True)], dim=1)

    return with_mean


def _intervals(
    statistic: Statistic, images: int, names: Sequence[str], level: float, repeats: int, seed: int
) -> Intervals:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level}: expected a share between 0 and 1, such as 0.95.")
    value = statistic(torch.ones(1, images, dtype=torch.float64))[0].numpy()
    if images < 2:
        found = [Interval(_known(number), None, None) for number in value]
    else:
        rng, shares = np.random.default_rng(seed), np.full(images, 1.0 / images)

        def drawn(numbers: range) -> Tensor:
            return torch.from_numpy(rng.multinomial(images, shares, len(numbers)).astype(float))

        def without_one(numbers: range) -> Tensor:
            return 1.0 - torch.eye(images, dtype=torch.float64)[numbers.start : numbers.stop]

        draws = _in_chunks(statistic, repeats, drawn)
        jackknife = _in_chunks(statistic, images, without_one)
        found = [_bca(*columns, level) for columns in zip(value, draws.T, jackknife.T, strict=True)]
    return Intervals(found[-1], dict(zip(names, found, strict=False)))


def _in_chunks(statistic: Statistic, count: int, weights: Callable[[range], Tensor]) -> np.ndarray:
    chunks = (range(start, min(count, start + _CHUNK)) for start in range(0, count, _CHUNK))
    return torch.cat([statistic(weights(numbers)) for numbers in chunks]).numpy()


def _bca(value: float, draws: np.ndarray, jackknife: np.ndarray, level: float) -> Interval:
    draws, jackknife = draws[~np.isnan(draws)], jackknife[~np.isnan(jackknife)]
    if np.isnan(value) or not len(draws):
        return Interval(_known(value), None, None)
    # Ties count half: a score that no draw changes has no bias.
    below = ((draws < value).sum() + 0.5 * (draws == value).sum()) / len(draws)
    bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    away = jackknife.mean() - jackknife if len(jackknife) else np.zeros(1)
    spread = (away**2).sum()
    skew = (away**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    ends = np.quantile(draws, ndtr(bias + shifted / (1 - skew * shifted)))
    return Interval(float(value), float(ends[0]), float(ends[1]))


def _permutation_p_values(pair: Sequence[Tensor], name: str, average: str, repeats: int, seed: int) -> list[float]:
    """Of each class, and of the mean: share of exchanges whose difference is as large, the real one included."""
    both = torch.cat(list(pair))
    images = len(pair[0])
    statistic = _statistic(both, name, average)
    rng = np.random.default_rng(seed)

    def differences(exchanged: Tensor) -> Tensor:
        kept = 1.0 - exchanged
        return statistic(torch.cat([exchanged, kept], 1)) - statistic(torch.cat([kept, exchanged], 1))

    real = differences(torch.zeros(1, images, dtype=torch.float64))

    def exchanges(numbers: range) -> Tensor:
        return torch.from_numpy(rng.integers(0, 2, (len(numbers), images)).astype(float))

    drawn = _in_chunks(differences, repeats, exchanges)
    # A hair less: sums in another order must not make an equal difference a smaller one.
    as_large = np.abs(drawn) >= np.abs(real.numpy()) - 1e-12
    return ((1 + as_large.sum(0)) / (1 + repeats)).tolist()


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
