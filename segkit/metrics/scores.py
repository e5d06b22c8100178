"""`Scores`: IoU, Dice and others from counts, pooled and per image, with absent classes named.

Two averages, never mixed:

- *pooled* sums the pixels of the whole data set first, then makes one score per class;
- *per image* makes one score per class and image, then averages over the images where the class occurs in the
  truth or in the prediction.

Every mean is a mean over classes, background included where it is a class. A class absent from both sides has no
score: it is None, is named in `absent` and is left out of means; neither 0 nor 1 would be true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.metrics.counts import Counts

# Name -> (numerator, denominator) from tp, fp, fn, tn of one class.
_RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "iou": lambda tp, fp, fn, tn: (tp, tp + fp + fn),
    "dice": lambda tp, fp, fn, tn: (2 * tp, 2 * tp + fp + fn),
    "precision": lambda tp, fp, fn, tn: (tp, tp + fp),
    "recall": lambda tp, fp, fn, tn: (tp, tp + fn),
    "specificity": lambda tp, fp, fn, tn: (tn, tn + fp),
    "accuracy": lambda tp, fp, fn, tn: (tp + tn, tp + fp + fn + tn),
}
SCORE_NAMES = tuple(_RATIOS)


@dataclass(frozen=True)
class ClassScores:
    """One kind of score under one average, in 0..1.

    Attributes:
        mean: over the classes that have a score; None if none has.
        per_class: class name -> score, None for a class without one.
    """

    mean: float | None
    per_class: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready `{"mean": ..., "per_class": {...}}`."""
        return {"mean": self.mean, "per_class": dict(self.per_class)}


class Scores:
    """Scores of the predictions that were counted.

    | name | is | when its denominator is 0 |
    |---|---|---|
    | iou | tp / (tp + fp + fn) | class absent: None |
    | dice | 2 tp / (2 tp + fp + fn) | class absent: None |
    | precision | tp / (tp + fp) | class in the truth, nothing predicted: 0 |
    | recall | tp / (tp + fn) | class predicted, not in the truth: 0 |
    | specificity | tn / (tn + fp) | the class fills every valid pixel: None |
    | accuracy | (tp + tn) / valid pixels, the class against the rest | class absent: None |

    A class absent from truth and prediction has none of them. A class predicted but absent from the truth scores 0
    in iou, dice, precision and recall.

    Attributes:
        counts: what the scores are made of; `segkit.metrics.definitions` makes others of it.
        images: how many were counted.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.format = counts.format
        self.images = len(counts)
        self._pooled = counts.rows.sum(0)

    @classmethod
    def join(cls, scores: Sequence[Scores]) -> Scores:
        """Scores of all images of several, which have one format: counts are summed, not scores averaged."""
        rows = torch.cat([each.counts.rows for each in scores])
        return cls(Counts(scores[0].format, rows, torch.arange(len(rows))))

    @property
    def absent(self) -> list[str]:
        """Names of the classes that neither the truth nor a prediction holds, anywhere."""
        return [name for name, here in zip(self.format.names, present(self._pooled).tolist(), strict=True) if not here]

    def pooled(self, name: str) -> ClassScores:
        """Score `name` of each class from pixels summed over the data set."""
        return self._by_class(ratio(name, self._pooled))

    def per_image(self, name: str) -> ClassScores:
        """Score `name` of each class, averaged over the images where the class occurs on either side."""
        return self._by_class(ratio(name, self.counts.rows).nanmean(0))

    def means(self) -> dict[str, float | None]:
        """Every mean by one flat name, `pooled_iou`, `per_image_dice` and so on, for logs and monitors."""
        return {
            f"{average}_{name}": getattr(self, average)(name).mean
            for average in ("pooled", "per_image")
            for name in SCORE_NAMES
        }

    @property
    def micro_recall(self) -> float | None:
        """Σ tp / Σ (tp + fn) over classes and images: the share of all true pixels that were found.

        For classes that exclude each other this is pixel (global) accuracy: right pixels over valid pixels. For
        overlapping or binary masks it is not, since background has no class of its own.
        """
        tp, _, fn, _ = self._pooled.sum(0).tolist()
        return tp / (tp + fn) if tp + fn else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `scores.json` holds it; the caller adds which split it was."""
        return {
            "format": self.format.to_dict()["format"],
            "images": self.images,
            "absent": self.absent,
            "pooled": {name: self.pooled(name).to_dict() for name in SCORE_NAMES},
            "per_image": {name: self.per_image(name).to_dict() for name in SCORE_NAMES},
        }

    def _by_class(self, values: Tensor) -> ClassScores:
        """(C,) float64 with NaN for "no score"."""
        known = values[~values.isnan()]
        per_class = [None if value != value else value for value in values.tolist()]
        return ClassScores(
            mean=known.mean().item() if len(known) else None,
            per_class=dict(zip(self.format.names, per_class, strict=True)),
        )


def ratio(name: str, rows: Tensor) -> Tensor:
    """(..., 4) int64 counts to (...) float64 scores, NaN where there is none."""
    if name not in _RATIOS:
        raise ValueError(f"score {name!r} is not known: expected one of {', '.join(SCORE_NAMES)}.")
    top, bottom = _RATIOS[name](*rows.unbind(-1))
    # A present class whose precision or recall is 0/0 was missed or made up altogether: 0. Without negatives
    # there is no specificity to speak of.
    empty = torch.nan if name == "specificity" else 0.0
    score = torch.where(bottom > 0, top.double() / bottom.clamp_min(1), empty)
    return torch.where(present(rows), score, torch.nan)


def present(rows: Tensor) -> Tensor:
    """(..., 4) int64 to (...) bool: the class is in the truth or in the prediction."""
    return rows[..., :3].sum(-1) > 0
