"""Losses that judge every class by its area: Dice, Jaccard, Tversky and Lovász.

All are 1 minus an overlap, per class over the valid pixels of the whole batch, then averaged over *all* classes.
A class absent from the truth stays in: what is predicted of it is wrong and costs something. A class without a
single valid pixel costs 0 and has no gradient.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, check_number
from segkit.ops.loss_sums import LossSums, loss_sums
from segkit.ops.lovasz import lovasz_loss
from segkit.ops.upsample import CoarseLogits

# One pixel added to both sides of each ratio: nothing predicted of an absent class is then a perfect score, 1/1.
_SMOOTH = 1.0


class OverlapLoss(SegmentationLoss):
    """1 - mean over classes of a ratio of overlap sums."""

    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        return self.value(loss_sums(logits, target, self.format.choices))

    def value(self, sums: LossSums) -> Tensor:
        """The loss of a batch from its sums."""
        return 1.0 - self.ratio(sums).mean()

    @abstractmethod
    def ratio(self, sums: LossSums) -> Tensor:
        """(C,) in [0, 1]; 1 is a perfect match."""


class Dice(OverlapLoss):
    """1 - mean over classes of (2 Σpt + 1) / (Σp + Σt + 1), with p not squared (Drozdzal et al. 2016)."""

    def ratio(self, sums: LossSums) -> Tensor:
        """(C,) soft Dice."""
        return (2.0 * sums.both + _SMOOTH) / (sums.probs + sums.truth + _SMOOTH)


class Jaccard(OverlapLoss):
    """1 - mean over classes of (Σpt + 1) / (Σp + Σt - Σpt + 1): a soft intersection over union."""

    def ratio(self, sums: LossSums) -> Tensor:
        """(C,) soft intersection over union."""
        return (sums.both + _SMOOTH) / (sums.probs + sums.truth - sums.both + _SMOOTH)


class Tversky(OverlapLoss):
    """1 - mean over classes of (TP + 1) / (TP + alpha FP + beta FN + 1) with soft counts (Salehi et al. 2017).

    Args:
        alpha: price of a false positive.
        beta: price of a false negative. The defaults 0.3 and 0.7 are what Salehi et al. found best for small
            lesions: a miss costs more than a false alarm. 0.5 and 0.5 is Dice (but for the added pixel), 1 and 1
            is Jaccard.
    """

    def __init__(self, format: MaskFormat, alpha: float = 0.3, beta: float = 0.7) -> None:
        super().__init__(format)
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        if not self.alpha + self.beta:
            raise ValueError("alpha and beta are 0, so no mistake costs: expected a finite number above 0 for one.")

    def ratio(self, sums: LossSums) -> Tensor:
        """(C,) soft Tversky index."""
        false_positives, false_negatives = sums.probs - sums.both, sums.truth - sums.both
        wrong = self.alpha * false_positives + self.beta * false_negatives
        return (sums.both + _SMOOTH) / (sums.both + wrong + _SMOOTH)


class Lovasz(SegmentationLoss):
    """Lovász extension of the Jaccard loss on |truth - probability|, mean over classes (Berman et al. 2018, eq. 9).

    It equals 1 - IoU of the batch exactly where probabilities are 0 or 1, and is convex in the errors between.
    All classes count, not only those in the truth (`classes="all"` of the paper's code): an absent class costs its
    highest probability, so each step takes down its worst false positive.
    """

    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        return lovasz_loss(logits, target, self.format.choices)
