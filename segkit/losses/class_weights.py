"""Weights of classes: as given, and balanced from how many pixels each has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import check_number
from segkit.suggest import closest

# In a config: to be counted over the training part.
BALANCED = "balanced"
_LARGEST_WEIGHT = 10.0


def balanced_weights(pixels: Sequence[int], pixels_around: Sequence[int]) -> list[float]:
    """Softened median frequency over frequency (Eigen & Fergus 2015), to two decimals.

    The frequency of a class is its share of the pixels of those images that hold it. The square root keeps a class of a
    thousandth from outweighing all others, and weights stay within 1/10 and 10. A class that no image holds weighs 1.

    Args:
        pixels: of each class.
        pixels_around: of all images that hold it.
    """
    frequency = [own / around if own else 0.0 for own, around in zip(pixels, pixels_around, strict=True)]
    found = [share for share in frequency if share]
    middle, limit = float(np.median(found)) if found else 1.0, _LARGEST_WEIGHT
    softened = [min(limit, max(1 / limit, math.sqrt(middle / share))) if share else 1.0 for share in frequency]
    return [round(weight, 2) for weight in softened]


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
    if isinstance(class_weights, str) and class_weights == BALANCED:
        raise ValueError(
            "class_weights is balanced, and nothing says of which data: `segkit train` counts the training part; in "
            "code pass the loss through `segkit.training.class_balance.count_class_weights(spec, data)` first."
        )
    if isinstance(class_weights, str) or not isinstance(class_weights, Iterable):
        raise ValueError(
            f"class_weights is {class_weights!r}: expected {BALANCED}, a list of numbers or {{class name: weight}}."
        )
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
