"""Losses that judge every pixel by itself: cross-entropy and focal loss.

Each is Σ w·term / Σ w over the valid choices of a batch. What a choice is, one per pixel with softmax or one per
class with sigmoid, the mask format says: cross-entropy of a sigmoid format is what others call BCE.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, check_number
from segkit.ops.loss_sums import LossSums, PixelTerm, loss_sums
from segkit.ops.upsample import CoarseLogits
from segkit.suggest import closest


class PixelLoss(SegmentationLoss):
    """Weighted mean of a term over the valid choices of a batch.

    Args:
        class_weights: one number per class, or {class name: weight} in which classes left out weigh 1.
            A choice weighs what the class that is there weighs, and 1 where the answer is "not there".
    """

    class_weights: Tensor | None

    def __init__(self, format: MaskFormat, class_weights: Any = None) -> None:
        super().__init__(format)
        # Not saved with a checkpoint: it is an option of the loss, nothing that was learned.
        self.register_buffer("class_weights", parse_class_weights(class_weights, format), persistent=False)

    @property
    @abstractmethod
    def term(self) -> PixelTerm:
        """What is summed over the choices."""

    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        return self.value(loss_sums(logits, target, self.format.choices, self.term, overlap=False))

    def value(self, sums: LossSums) -> Tensor:
        """Σ w·term / Σ w, and exactly 0 with zero gradient where all weights are 0."""
        return sums.term / torch.where(sums.weight > 0, sums.weight, 1.0)


class CrossEntropy(PixelLoss):
    """Mean negative log-likelihood of the truth, over valid choices.

    Args:
        class_weights: see `PixelLoss`.
        label_smoothing: in [0, 1); the truth is mixed with a uniform choice (Szegedy et al. 2016).
    """

    def __init__(self, format: MaskFormat, class_weights: Any = None, label_smoothing: float = 0.0) -> None:
        super().__init__(format, class_weights)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, below=1.0)

    @property
    def term(self) -> PixelTerm:
        return PixelTerm(smoothing=self.label_smoothing, class_weights=self.class_weights)


class Focal(PixelLoss):
    """Cross-entropy in which well-predicted choices count less: (1 - p)^gamma · -log p (Lin et al. 2017).

    Args:
        gamma: 0 is cross-entropy; the larger, the less an easy pixel counts. 2 is the paper's value.
        class_weights: see `PixelLoss`; the paper's alpha. The sum is divided by the weights alone, so the value is
            not that of the paper, which divides by the number of objects.
    """

    def __init__(self, format: MaskFormat, gamma: float = 2.0, class_weights: Any = None) -> None:
        super().__init__(format, class_weights)
        self.gamma = check_number("gamma", gamma)

    @property
    def term(self) -> PixelTerm:
        return PixelTerm(gamma=self.gamma, class_weights=self.class_weights)


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
