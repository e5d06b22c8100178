"""Losses that judge every pixel by itself: cross-entropy and focal loss.

Each is Σ w·term / Σ w over the valid choices of a batch. What a choice is, one per pixel with softmax or one per
class with sigmoid, the mask format says: cross-entropy of a sigmoid format is what others call BCE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, check_number
from segkit.suggest import closest


class CrossEntropy(SegmentationLoss):
    """Mean negative log-likelihood of the truth, over valid choices.

    Args:
        class_weights: one number per class, or {class name: weight} in which classes left out weigh 1.
            A choice weighs what the class that is there weighs, and 1 where the answer is "not there".
        label_smoothing: in [0, 1); the truth is mixed with a uniform choice (Szegedy et al. 2016).
    """

    class_weights: Tensor | None

    def __init__(self, format: MaskFormat, class_weights: Any = None, label_smoothing: float = 0.0) -> None:
        super().__init__(format)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, below=1.0)
        # Not saved with a checkpoint: it is an option of the loss, nothing that was learned.
        self.register_buffer("class_weights", parse_class_weights(class_weights, format), persistent=False)

    def measure(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        terms = -self.format.log_likelihood(logits, target, self.label_smoothing)
        return weighted_mean(terms, self.format.choice_weights(target, self.class_weights))


class Focal(SegmentationLoss):
    """Cross-entropy in which well-predicted choices count less: (1 - p)^gamma · -log p (Lin et al. 2017).

    Args:
        gamma: 0 is cross-entropy; the larger, the less an easy pixel counts. 2 is the paper's value.
        class_weights: as for `CrossEntropy`; the paper's alpha. The sum is divided by the weights alone, so
            the value is not that of the paper, which divides by the number of objects.
    """

    class_weights: Tensor | None

    def __init__(self, format: MaskFormat, gamma: float = 2.0, class_weights: Any = None) -> None:
        super().__init__(format)
        self.gamma = check_number("gamma", gamma)
        self.register_buffer("class_weights", parse_class_weights(class_weights, format), persistent=False)

    def measure(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        log_p = self.format.log_likelihood(logits, target)
        # expm1 keeps the digits of 1 - p near 1. At 0 the slope of x^gamma is infinite for gamma < 1, and
        # infinite · 0 is NaN: hence the smallest positive number in its place.
        miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return weighted_mean(miss**self.gamma * -log_p, self.format.choice_weights(target, self.class_weights))


def weighted_mean(terms: Tensor, weights: Tensor) -> Tensor:
    """Σ w·term / Σ w, and exactly 0 with zero gradient where all weights are 0."""
    total = weights.sum()
    return (weights * terms).sum() / torch.where(total > 0, total, 1.0)


def parse_class_weights(class_weights: Any, format: MaskFormat) -> Tensor | None:
    """(C,) float32 from numbers in the order of the classes or {class name: weight}; None stays None."""
    if class_weights is None:
        return None
    if isinstance(class_weights, Mapping):
        given = {str(name): weight for name, weight in class_weights.items()}
        for name in given:
            if name not in format.names:
                raise ValueError(f"class_weights names {name!r}, which is no class. {closest(name, format.names)}")
        class_weights = [given.get(name, 1.0) for name in format.names]
    if isinstance(class_weights, str) or not isinstance(class_weights, Iterable):
        raise ValueError(f"class_weights is {class_weights!r}: expected a list of numbers or {{class name: weight}}.")
    numbers = class_weights.tolist() if isinstance(class_weights, Tensor) else list(class_weights)
    if len(numbers) != format.num_classes:
        raise ValueError(
            f"{len(numbers)} class_weights for {format.num_classes} classes: give one for each of "
            f"{list(format.names)}, or {{class name: weight}} for some."
        )
    weights = [check_number(f"class_weights of {name}", w) for name, w in zip(format.names, numbers, strict=True)]
    if not any(weights):
        raise ValueError("all class_weights are 0, so nothing would be trained: give at least one class a weight.")
    return torch.tensor(weights, dtype=torch.float32)
