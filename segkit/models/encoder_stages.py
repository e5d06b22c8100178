"""Which stage of an encoder a parameter belongs to, read from the graph of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segkit.models.segmenter import Segmenter, pad_to_stride


def encoder_of(model: Segmenter) -> nn.Module | None:
    """The encoder of the network; None for a network of your own that calls no part of it `encoder`."""
    encoder = getattr(model.network, "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def encoder_stages(model: Segmenter) -> list[list[nn.Parameter]]:
    """The encoder's parameters by stage, from the stem to the stage nearest to the decoder.

    A stage is what lies between two feature maps that the encoder hands to the decoder: stem and four stages of a
    ResNet, a few blocks each of a vision transformer. Names and order of layers differ from encoder to encoder, so the
    smallest image is sent through, and each parameter belongs to the first feature map that its graph leads to. One
    that has a part in none (a classifier, say) belongs to the last stage.

    Raises:
        ValueError: the network has no encoder, or one that gives no features by itself.
    """
    encoder = encoder_of(model)
    if encoder is None:
        raise ValueError(
            f"{model.recipe.architecture} has no part `encoder`, whose stages could be told apart: "
            "leave `layer_decay` out, or give your network's backbone that name."
        )
    own = list(encoder.parameters())
    stage_of: dict[int, int] = {}
    seen: set[Any] = set()
    for stage, feature in enumerate(_features(model, encoder)):
        for parameter in _reached(feature, seen):
            stage_of.setdefault(id(parameter), stage)
    used = sorted({stage_of[id(p)] for p in own if id(p) in stage_of})
    if not used:
        raise ValueError(f"the encoder of {model.recipe.architecture} gives no feature maps: leave `layer_decay` out.")
    return [[p for p in own if stage_of.get(id(p), used[-1]) == stage] for stage in used]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """For one image, which is no batch and no running statistics; then each part is in its mode of before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _features(model: Segmenter, encoder: nn.Module) -> list[Tensor]:
    first = next(encoder.parameters())
    image = torch.zeros(1, model.in_channels, 1, 1, device=first.device, dtype=first.dtype)
    with evaluating(encoder), torch.enable_grad():
        return list(_tensors(encoder(pad_to_stride(image, model.stride, model.min_side))))


def _tensors(features: Any) -> Iterator[Tensor]:
    """Some encoders give tuples of lists: feature maps, then tokens."""
    if isinstance(features, Tensor):
        yield features
    elif isinstance(features, (list, tuple)):
        for feature in features:
            yield from _tensors(feature)


def _reached(feature: Tensor, seen: set[Any]) -> Iterator[Tensor]:
    """Leaves of the graph behind `feature`, without the nodes in `seen`, to which it adds."""
    waiting = [feature.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]
