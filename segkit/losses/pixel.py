"""Losses that judge every pixel by itself: cross-entropy and focal loss.

Each is Σ w·term / Σ w over the valid choices of a batch, or over the hard ones among them. What a choice is, one per
pixel with softmax or one per class with sigmoid, the mask format says: cross-entropy of a sigmoid format is what others
call BCE.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, check_number, full_logits
from segkit.losses.class_weights import parse_class_weights
from segkit.ops.hardest import select_hardest
from segkit.ops.loss_sums import LossSums, PixelTerm, loss_sums
from segkit.ops.loss_tiles import check_planes
from segkit.ops.upsample import CoarseLogits


class PixelLoss(SegmentationLoss):
    """Weighted mean of a term over the valid choices of a batch, or over the hard ones.

    Hard are choices whose truth has a probability below `hard_below`, and the `top_k` of all valid choices whose truth
    is the least probable; with both, either will do, so that `top_k` is how many there are at least. `hard_below` alone
    may leave nothing, which costs 0. An exact number is taken: among equals those that come first. Choices that weigh 0
    are never taken. Selecting needs logits at full resolution; coarse ones are upsampled.

    Args:
        class_weights: one number per class, or {class name: weight} in which classes left out weigh 1.
            A choice weighs what the class that is there weighs, and 1 where the answer is "not there".
        label_smoothing: in [0, 1); the truth is mixed with a uniform choice (Szegedy et al. 2016).
        top_k: share of the choices in (0, 1], rounded up (Wu et al. 2016).
        hard_below: probability in (0, 1] (Shrivastava et al. 2016, as segmentation has taken it up).
        hard_per: `batch` takes `top_k` of the whole batch, `image` of each image.

    Attributes:
        sums_all: whether no choice is selected and the term is one that `loss_sums` knows.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        format: MaskFormat,
        class_weights: Any = None,
        label_smoothing: float = 0.0,
        top_k: float | None = None,
        hard_below: float | None = None,
        hard_per: str = "batch",
    ) -> None:
        super().__init__(format)
        # Not saved with a checkpoint: it is an option of the loss, nothing that was learned.
        self.register_buffer("class_weights", parse_class_weights(class_weights, format), persistent=False)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, below=1.0)
        self.top_k, self.hard_below = _check_share("top_k", top_k), _check_share("hard_below", hard_below)
        if hard_per not in ("batch", "image"):
            raise ValueError(f"hard_per is {hard_per!r}: expected batch or image.")
        if hard_per == "image" and top_k is None:
            raise ValueError("hard_per is image, but there is no `top_k` to take of each image: give both or neither.")
        self.hard_per = hard_per

    @property
    @abstractmethod
    def term(self) -> PixelTerm:
        """What is summed over the choices."""

    @property
    def sums_all(self) -> bool:
        term, selects = self.term, self.top_k is not None or self.hard_below is not None
        return not selects and not (term.gamma and term.smoothing)

    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        if self.sums_all:
            return self.value(loss_sums(logits, target, self.format.choices, self.term, overlap=False))
        return self._measure_map(full_logits(logits), target)

    def value(self, sums: LossSums) -> Tensor:
        """Σ w·term / Σ w, and exactly 0 with zero gradient where all weights are 0."""
        return sums.term / torch.where(sums.weight > 0, sums.weight, 1.0)

    def _measure_map(self, logits: Tensor, target: Tensor) -> Tensor:
        """The same from the terms of all choices, (N, T, H, W)."""
        check_planes(target, self.format.choices, self.format.num_classes)
        term = self.term
        log_p = self.format.log_likelihood(logits, target, term.smoothing)
        weights = self.format.choice_weights(target, term.class_weights).to(log_p.dtype)
        taken = weights > 0
        if self.top_k is not None or self.hard_below is not None:
            with torch.no_grad():
                truth = self.format.log_likelihood(logits, target) if term.smoothing else log_p
                taken = self._hard(truth, taken)
        weights = torch.where(taken, weights, 0.0)
        terms = -log_p
        if term.gamma:
            # At 0 the slope of x^gamma is infinite for gamma < 1, and infinite · 0 is NaN.
            terms = terms * (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** term.gamma
        total = weights.sum()
        return torch.where(taken, weights * terms, 0.0).sum() / torch.where(total > 0, total, 1.0)

    def _hard(self, log_p: Tensor, counted: Tensor) -> Tensor:
        """(N, T, H, W) bool: the hard ones of those counted, by the log-probability of their truth."""
        hard = torch.zeros_like(counted)
        if self.hard_below is not None:
            # Not `log_p < limit`: a NaN stays in, for a loss that is no number must be seen.
            hard = counted & ~(log_p >= math.log(self.hard_below))
        if self.top_k is not None:
            sets = (1, -1) if self.hard_per == "batch" else (len(log_p), -1)
            if log_p.numel():
                found = select_hardest(-log_p.reshape(sets), counted.reshape(sets), self.top_k)
                hard = hard | found.view_as(counted)
        return hard


class CrossEntropy(PixelLoss):
    """Mean negative log-likelihood of the truth, over valid choices. Its options are those of `PixelLoss`."""

    @property
    def term(self) -> PixelTerm:
        return PixelTerm(smoothing=self.label_smoothing, class_weights=self.class_weights)


class Focal(PixelLoss):
    """Cross-entropy in which well-predicted choices count less: (1 - p)^gamma · -log p (Lin et al. 2017).

    With `label_smoothing`, log p is the log-likelihood of the smoothed truth, in both places.

    Args:
        gamma: 0 is cross-entropy; the larger, the less an easy pixel counts. 2 is the paper's value.
        class_weights: see `PixelLoss`; the paper's alpha. The sum is divided by the weights alone, so the value is
            not that of the paper, which divides by the number of objects.
        label_smoothing, top_k, hard_below, hard_per: see `PixelLoss`.
    """

    def __init__(
        self,
        format: MaskFormat,
        gamma: float = 2.0,
        class_weights: Any = None,
        label_smoothing: float = 0.0,
        top_k: float | None = None,
        hard_below: float | None = None,
        hard_per: str = "batch",
    ) -> None:
        super().__init__(format, class_weights, label_smoothing, top_k, hard_below, hard_per)
        self.gamma = check_number("gamma", gamma)

    @property
    def term(self) -> PixelTerm:
        return PixelTerm(self.gamma, self.label_smoothing, self.class_weights)


def _check_share(name: str, value: Any) -> float | None:
    """`value` if it is None or a number in (0, 1]."""
    if value is None:
        return None
    number = check_number(name, value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name} is {value!r}: expected a number above 0 and at most 1.")
    return number
