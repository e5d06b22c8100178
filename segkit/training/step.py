"""The one function that turns a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from segkit.models.segmenter import Segmenter


def training_loss(model: Segmenter, loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor) -> Tensor:
    """Loss of a batch. Every training path calls this and nothing else.

    Args:
        images: (N, B, H, W) as stored.
        target: (N, P, H, W) planes.

    Returns:
        Scalar float. The model's stride padding is cropped away before, so it is never trained on.
    """
    return loss(model(images), target)
