"""Log-likelihood and weights of the choices a pixel makes: the definitions, on bare tensors.

A softmax makes one choice among C classes per pixel; sigmoids make C choices of two outcomes each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """float64 stays; everything else becomes float32: sums of exponentials overflow float16, which ends at 65504."""
    return logits if logits.dtype == torch.float64 else logits.float()


def softmax_log_likelihood(logits: Tensor, target: Tensor, valid: Tensor, smoothing: float = 0.0) -> Tensor:
    """(N, 1, H, W) log-probability of the true class.

    Args:
        logits: (N, C, H, W) float.
        target: (N, 1, H, W) class indices; any value where not valid.
        valid: (N, 1, H, W) bool; the result is 0 where False.
        smoothing: share of the truth that is spread over all classes (Szegedy et al. 2016), in [0, 1).
    """
    # -1 is no class, so that F.cross_entropy leaves these pixels out.
    truth = torch.where(valid, target, 0).long().masked_fill(~valid, -1)[:, 0]
    return -F.cross_entropy(
        _hide(logits, valid), truth, ignore_index=-1, reduction="none", label_smoothing=smoothing
    ).unsqueeze(1)


def bernoulli_log_likelihood(logits: Tensor, truth: Tensor, valid: Tensor, smoothing: float = 0.0) -> Tensor:
    """(N, C, H, W) log-probability of what is true of each class.

    Args:
        logits: (N, C, H, W) float.
        truth: (N, C, H, W) bool.
        valid: (N, 1, H, W) or (N, C, H, W) bool; the result is 0 where False.
        smoothing: share of the truth that is spread over both outcomes, in [0, 1).
    """
    logits = _hide(logits, valid)
    share = truth.to(logits.dtype) * (1.0 - smoothing) + smoothing / 2.0
    return torch.where(valid, -F.binary_cross_entropy_with_logits(logits, share, reduction="none"), 0.0)


def softmax_weights(target: Tensor, valid: Tensor, class_weights: Tensor | None) -> Tensor:
    """(N, 1, H, W) float32: the weight of the true class, 0 where not valid; shapes as above."""
    if class_weights is None:
        return valid.float()
    weights = class_weights.to(target.device, torch.float32)
    return torch.where(valid, weights[torch.where(valid, target, 0).long()], 0.0)


def bernoulli_weights(truth: Tensor, valid: Tensor, class_weights: Tensor | None) -> Tensor:
    """(N, C, H, W) float32: the weight of a class where it is true, 1 where it is not, 0 where not valid."""
    if class_weights is None:
        return valid.expand_as(truth).float()
    weights = class_weights.to(truth.device, torch.float32).view(1, -1, 1, 1)
    return torch.where(valid, torch.where(truth, weights, 1.0), 0.0)


def _hide(logits: Tensor, valid: Tensor) -> Tensor:
    # where(), not a product: an infinite logit under an ignored pixel must make neither value nor gradient NaN.
    return torch.where(valid, at_least_float32(logits), 0.0)
