"""Losses that judge every class by its area: Dice, Jaccard, Tversky and Lovász.

All are 1 minus an overlap, per class over the valid pixels of the whole batch, then averaged over *all* classes.
A class absent from the truth stays in: what is predicted of it is wrong and costs something. A class without a
single valid pixel costs 0 and has no gradient.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, check_number
from segkit.ops.overlap import OverlapSums, overlap_sums

# One pixel added to both sides of each ratio: nothing predicted of an absent class is then a perfect score, 1/1.
_SMOOTH = 1.0


class _OverlapLoss(SegmentationLoss):
    """1 - mean over classes of a ratio of overlap sums."""

    def measure(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        sums = overlap_sums(self.format.probabilities(logits), self.format.expand(target), self.format.valid(target))
        return 1.0 - self.ratio(sums).mean()

    @abstractmethod
    def ratio(self, sums: OverlapSums) -> Tensor:
        """(C,) in [0, 1]; 1 is a perfect match."""


class Dice(_OverlapLoss):
    """1 - mean over classes of (2 Σpt + 1) / (Σp + Σt + 1), with p not squared (Drozdzal et al. 2016)."""

    def ratio(self, sums: OverlapSums) -> Tensor:
        """(C,) soft Dice."""
        return (2.0 * sums.both + _SMOOTH) / (sums.probs + sums.truth + _SMOOTH)


class Jaccard(_OverlapLoss):
    """1 - mean over classes of (Σpt + 1) / (Σp + Σt - Σpt + 1): a soft intersection over union."""

    def ratio(self, sums: OverlapSums) -> Tensor:
        """(C,) soft intersection over union."""
        return (sums.both + _SMOOTH) / (sums.probs + sums.truth - sums.both + _SMOOTH)


class Tversky(_OverlapLoss):
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

    def ratio(self, sums: OverlapSums) -> Tensor:
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

    def measure(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        probs, truth = self.format.probabilities(logits), self.format.expand(target)
        valid = self.format.valid(target).expand_as(truth)
        # The extension is linear between two ties of the errors: its gradient is a weight per pixel, a constant.
        errors = torch.where(truth, 1.0 - probs, probs)
        return (lovasz_weights(errors.detach(), truth, valid) * errors).sum() / self.format.num_classes


def lovasz_weights(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Gradient of each class's Lovász extension with respect to its errors.

    Args:
        errors: (N, C, H, W) float in [0, 1].
        truth: (N, C, H, W) bool.
        valid: (N, C, H, W) bool; False pixels get the weight 0.

    Returns:
        (N, C, H, W) like `errors`; a class with a valid pixel has a sum of at most 1.
    """
    weights = torch.empty_like(errors)
    # One class at a time: the order and its running sums are int64, many times the memory of the errors.
    for c in range(errors.shape[1]):
        weights[:, c] = _class_weights(errors[:, c], truth[:, c], valid[:, c])
    return weights


def _class_weights(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(N, H, W) each. Pixels enter a set of errors, worst first; a weight is the step in that set's Jaccard loss."""
    # A stable order makes equal runs equal, also among ties.
    order = errors.flatten().sort(descending=True, stable=True).indices
    # Ignored pixels are neither and take no step; leaving them out of the sort would wait for the device.
    hit = (truth & valid).flatten()[order]
    miss = (valid & ~truth).flatten()[order]
    # The set holds some true pixels and some false positives: its loss is 1 - intersection / union. Integers, and
    # the step in closed form: differences of neighbouring losses would lose most digits in float32.
    union = hit.sum() + miss.cumsum(0)
    intersection = (hit.sum() - hit.cumsum(0)).to(errors.dtype)
    step_hit = 1.0 / union.clamp_min(1).to(errors.dtype)
    # The first false positive of an absent class takes the loss from 0 to 1.
    step_miss = torch.where(union == 1, 1.0, intersection / (union * (union - 1)).clamp_min(1))
    steps = torch.where(hit, step_hit, torch.where(miss, step_miss, 0.0))
    return torch.empty_like(steps).scatter_(0, order, steps).view_as(errors)
