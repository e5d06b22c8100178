"""The convolution that gives the logits, and whether it has learned before."""

from __future__ import annotations

from torch import nn

from segkit.models.segmenter import Segmenter


def head_of(model: Segmenter) -> nn.Conv2d | None:
    """The last convolution with an output for each class; None without one that has a bias."""
    classes = model.format.num_classes
    heads = [m for m in model.network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    return heads[-1] if heads and heads[-1].bias is not None else None


def remember_new_head(model: Segmenter) -> None:
    """Mark the head of a network that was built just now as one that has not learned.

    Most begin with a bias of 0; DeepLab's of segmentation_models_pytorch with what torch draws, which looks learned.
    """
    head = head_of(model)
    if head is not None and head.bias is not None:
        model.new_head_bias = head.bias.detach().clone()


def has_learned_head(model: Segmenter) -> bool:
    """Whether the bias of the head is another than 0 and that which it was built with."""
    head = head_of(model)
    if head is None or head.bias is None or not head.bias.any():
        return False
    new = model.new_head_bias
    return new is None or not bool((head.bias.detach().cpu() == new.cpu()).all())
