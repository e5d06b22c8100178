"""The one function that turns a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from segkit.ops.upsample import CoarseLogits


class Auxiliary(Protocol):
    """What else is supervised, see `segkit.training.auxiliary.AuxiliaryHeads`."""

    def loss(self, loss: Callable[..., Tensor], logits: CoarseLogits, target: Tensor) -> Tensor:
        """To be added to the loss of the logits."""


def training_loss(
    model: nn.Module,
    loss: Callable[..., Tensor],
    images: Tensor,
    target: Tensor,
    auxiliary: Auxiliary | None = None,
) -> Tensor:
    """Loss of a batch. Every training path calls this and nothing else.

    Args:
        model: a `Segmenter`, also as DDP or `torch.compile` wraps it; or any network that gives (N, C, H, W) logits.
        loss: called as loss(logits, target). One that has `takes_coarse_logits`, as those of `build_loss` have, gets
            the logits before the upsampling that ends the network, and full-resolution logits are never built; any
            other gets a tensor of (N, C, H, W) logits.
        images: (N, B, H, W) as stored.
        target: (N, P, H, W) planes.
        auxiliary: heads inside a `Segmenter`, whose loss is added.

    Returns:
        Scalar float. The model's stride padding is cropped away before, so it is never trained on.
    """
    # Wrappers keep the model as `module`, and do their part in `forward` alone.
    if hasattr(getattr(model, "module", model), "coarse_logits"):
        logits = model(images, coarse=True)
        value = loss_of(loss, logits, target)
        return value if auxiliary is None else value + auxiliary.loss(loss, logits, target)
    return loss(model(images), target)


def image_losses(loss: Callable[..., Tensor], logits: CoarseLogits, target: Tensor) -> Tensor:
    """(N,) loss of each image alone, which does not depend on the images that it is in a batch with.

    The loss of a batch does: Dice pools its pixels, cross entropy divides by its valid ones.
    """
    each = (replace(logits, values=logits.values[i : i + 1]) for i in range(len(target)))
    return torch.stack([loss_of(loss, one, target[i : i + 1]).detach() for i, one in enumerate(each)])


def loss_of(loss: Callable[..., Tensor], logits: CoarseLogits, target: Tensor) -> Tensor:
    """`loss` of coarse logits, upsampled first for a loss that cannot take them as they are."""
    return loss(logits if getattr(loss, "takes_coarse_logits", False) else logits.full(), target)
