"""Names of activations, and thresholds: probabilities as people write them, logits as they are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

# What 0 counts as, and 1 as one minus it, where logits are asked of probabilities: float32 still tells it from 1.
LEAST_PROBABILITY = 1e-7


def check_activation(activation: str) -> str:
    """Refuse what is neither softmax nor sigmoid."""
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"activation is {activation!r}: expected softmax or sigmoid.")
    return activation


def check_threshold(threshold: float) -> None:
    """Refuse what is no probability between 0 and 1."""
    if not isinstance(threshold, (int, float)) or not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold {threshold}: expected one probability between 0 and 1, both excluded.")


def per_class(thresholds: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One threshold for each of `count` classes."""
    return (float(thresholds),) * count if isinstance(thresholds, (int, float)) else tuple(thresholds)


def logit(probability: float) -> float:
    """The logit whose sigmoid is `probability`: logits are compared, so that no sigmoid is computed."""
    return math.log(probability / (1.0 - probability))


def prior_logits(shares: Sequence[float], softmax: bool) -> list[float]:
    """Logits whose probabilities are `shares`; a class that is nowhere, or everywhere, has a millionth left."""
    kept = [min(max(share, 1e-6), 1.0 - 1e-6) for share in shares]
    return [math.log(share) if softmax else logit(share) for share in kept]
