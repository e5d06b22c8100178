"""Thresholds from validation data: exact counts at every candidate in one pass, chosen by cross-fitting.

Pixels are counted by how many candidates their class is above, compared as `decode` compares. These counts, and scores
of single images made from them, are sums over images: a fold is scored at thresholds that the others chose, and nothing
is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.formats.activation import logit
from segkit.formats.format_contract import ThresholdGroup
from segkit.formats.mask_format import MaskFormat
from segkit.metrics.scores import ratio

# Steps of a thousandth: finer ones differ by fewer pixels than another validation image would move them.
_STEPS = 1000
# A gain by cross-fitting below a hundredth of a percent point is none.
LEAST_GAIN = 1e-4
AVERAGES = ("pooled", "per_image")


@dataclass(frozen=True)
class Criterion:
    """The score that is to be raised: a mean over classes.

    Attributes:
        average: pooled or per_image.
        score: dice or iou.
    """

    average: str
    score: str

    @staticmethod
    def parse(text: str) -> Criterion:
        """`pooled_dice`, `pooled_iou`, `per_image_dice` or `per_image_iou`."""
        average, _, score = text.rpartition("_")
        if average not in AVERAGES or score not in ("dice", "iou"):
            raise ValueError(
                f"criterion is {text!r}: expected pooled_dice, pooled_iou, per_image_dice or per_image_iou."
            )
        return Criterion(average, score)

    def __str__(self) -> str:
        return f"{self.average}_{self.score}"


@dataclass(frozen=True)
class ThresholdChoice:
    """What became of one threshold.

    Attributes:
        classes: names of the classes that it is for.
        before, best: the one of the model, and the one that all images choose; None is none.
        score_before: with `before`, a mean over those of the classes that the truth holds.
        cross_fitted: of every image with the threshold that the other folds choose; None without a score.
        plain: with `best`, on the images that chose it, so too good.
        kept: whether `best` replaces `before`.
    """

    classes: tuple[str, ...]
    before: float | None
    best: float | None
    score_before: float | None
    cross_fitted: float | None
    plain: float | None
    kept: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.__dict__, "classes": list(self.classes)}


def threshold_candidates(format: MaskFormat) -> list[float | None]:
    """Ascending, with those of the format; None first, where a format may be without."""
    groups = format.threshold_groups
    grid = {step / _STEPS for step in range(1, _STEPS)} | {g.threshold for g in groups if g.threshold is not None}
    return [*([None] if any(g.optional for g in groups) else []), *sorted(grid)]


class Curves:
    """Counts of images at every candidate threshold; sums of several are those of all their images.

    Args:
        format: with classes C.
        candidates: T thresholds.
        criterion: which score of each image is summed beside the counts.
    """

    def __init__(self, format: MaskFormat, candidates: Sequence[float | None], criterion: Criterion) -> None:
        self.format, self.criterion = format, criterion
        self.candidates = list(candidates)
        c, t = format.num_classes, len(self.candidates)
        self._borders = torch.tensor([-torch.inf if p is None else logit(p) for p in self.candidates])
        self._rows = torch.zeros((c, t, 4), dtype=torch.int64)
        self._score_sum = torch.zeros((c, t), dtype=torch.float64)
        self._images = torch.zeros((c, t), dtype=torch.int64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count one image.

        Args:
            logits: (1, C, H, W).
            target: (1, P, H, W) planes.
        """
        claims, truth = self.format.claims(logits)[0], self.format.expand(target)[0]
        valid = self.format.valid(target)[0].expand_as(truth)
        borders = self._borders.to(claims.device, claims.dtype)
        rows = torch.stack([_counts(claims[c][valid[c]], truth[c][valid[c]], borders) for c in range(len(claims))])
        self._rows += rows
        score = ratio(self.criterion.score, rows)
        self._score_sum += score.nan_to_num(0.0)
        self._images += ~score.isnan()

    def plus(self, others: Sequence[Curves]) -> Curves:
        """Those of the images of all."""
        total = Curves(self.format, self.candidates, self.criterion)
        for curves in (self, *others):
            total._rows += curves._rows
            total._score_sum += curves._score_sum
            total._images += curves._images
        return total

    def at(self, places: Sequence[int]) -> Curves:
        """The same images at one candidate for each class, by its place: T = 1."""
        one = Curves(self.format, [None], self.criterion)
        for number, place in enumerate(places):
            one._rows[number, 0] = self._rows[number, place]
            one._score_sum[number, 0] = self._score_sum[number, place]
            one._images[number, 0] = self._images[number, place]
        return one

    def held(self, classes: Sequence[int]) -> list[int]:
        """Those of `classes` that the truth holds; of others, a threshold could but raise scores by silencing them."""
        pixels = self._rows[:, 0, 0] + self._rows[:, 0, 2]  # hits and misses, the same at every candidate
        return [number for number in classes if pixels[number] > 0]

    def scores(self, classes: Sequence[int]) -> Tensor:
        """(T,) the criterion, as a mean over those of `classes` that have a score; NaN where none has."""
        picked = list(classes)
        if self.criterion.average == "pooled":
            return ratio(self.criterion.score, self._rows[picked]).nanmean(0)
        return (self._score_sum[picked] / self._images[picked]).nanmean(0)


def fit_thresholds(folds: Sequence[Curves], format: MaskFormat) -> tuple[list[ThresholdChoice], MaskFormat, list[Any]]:
    """Thresholds of `format` that help by cross-fitting, each for itself.

    Returns:
        What became of each; the format with those that are kept; and for each fold the format with those that the
        other folds choose in their place.
    """
    candidates = folds[0].candidates
    whole = folds[0].plus(folds[1:])
    without = [_sum([c for c in folds if c is not fold]) for fold in folds]
    choices, final, by_fold = [], [], [[] for _ in folds]  # type: ignore[var-annotated]
    for group in format.threshold_groups:
        now = candidates.index(group.threshold)
        best = _best(whole, group, now)
        places = [_best(others, group, now) for others in without]
        crossed = _sum([fold.at([place] * format.num_classes) for fold, place in zip(folds, places, strict=True)])
        held = whole.held(group.classes)
        before, cross, plain = (
            _number(score) for score in (whole.scores(held)[now], crossed.scores(held)[0], whole.scores(held)[best])
        )
        kept = best != now and before is not None and cross is not None and cross > before + LEAST_GAIN
        names = tuple(format.names[number] for number in group.classes)
        choices.append(ThresholdChoice(names, group.threshold, candidates[best], before, cross, plain, kept))
        final.append(candidates[best] if kept else group.threshold)
        for thresholds, place in zip(by_fold, places, strict=True):
            thresholds.append(candidates[place] if kept else group.threshold)
    return choices, format.with_thresholds(final), [format.with_thresholds(thresholds) for thresholds in by_fold]


def _best(curves: Curves, group: ThresholdGroup, now: int) -> int:
    """Place of the candidate with the highest score, of equals the nearest to `now`, which stays without a score."""
    scores = curves.scores(curves.held(group.classes))
    if scores[now].isnan():
        return now
    scores = scores.nan_to_num(-1.0)
    if not group.optional and curves.candidates[0] is None:
        scores[0] = -1.0
    equal = (scores >= scores.max() - 1e-12).nonzero()[:, 0]
    return int(equal[(equal - now).abs().argmin()])


def _counts(claims: Tensor, truth: Tensor, borders: Tensor) -> Tensor:
    """(T, 4) int64 [tp, fp, fn, tn] of the pixels (n,) of one class, at each of (T,) logits."""
    above = torch.bucketize(claims, borders)  # the number of borders that a claim is higher than
    sums = torch.bincount(2 * above + truth, minlength=2 * len(borders) + 2).view(-1, 2)
    held = sums.flip(0).cumsum(0).flip(0)
    fp, tp = held[1:].cpu().unbind(1)
    negatives, positives = held[0].tolist()
    return torch.stack([tp, fp, positives - tp, negatives - fp], dim=1)


def _sum(curves: Sequence[Curves]) -> Curves:
    return curves[0].plus(curves[1:])


def _number(score: Tensor) -> float | None:
    return None if score.isnan() else float(score)
