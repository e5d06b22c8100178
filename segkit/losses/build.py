"""A weighted sum of losses from a config or a line of code."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, admit
from segkit.losses.pixel import CrossEntropy, Focal, PixelLoss
from segkit.losses.region import Dice, Jaccard, Lovasz, OverlapLoss, Tversky
from segkit.losses.shape import Boundary, ClDice
from segkit.ops.loss_sums import PixelTerm, loss_sums
from segkit.ops.upsample import CoarseLogits
from segkit.suggest import closest

LOSSES: dict[str, type[SegmentationLoss]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "jaccard": Jaccard,
    "tversky": Tversky,
    "lovasz": Lovasz,
    "boundary": Boundary,
    "cl_dice": ClDice,
}


def build_loss(spec: str | Mapping[str, Any], format: MaskFormat) -> LossMixture:
    """A loss for masks of `format`: `loss(logits, target)` is a scalar.

    Args:
        spec: a name, or names with weights, `{"cross_entropy": 1, "dice": 0.5}`. A mapping in place of a weight
            holds options too: `{"focal": {"weight": 1, "gamma": 3}}`; `weight` is 1 where left out.

    Raises:
        ValueError: an unknown loss or option, or a weight that is not a positive number.
    """
    if isinstance(spec, str):
        spec = {spec: 1.0}
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError(
            f"loss is {spec!r}: expected a name or names with weights, such as {{cross_entropy: 1, dice: 1}}."
        )
    losses, weights = {}, {}
    for name, value in spec.items():
        if name not in LOSSES:
            raise ValueError(f"loss {name!r} is not known. {closest(name, LOSSES)}")
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weights[name] = _check_weight(name, options.pop("weight", 1.0))
        losses[name] = _make(name, format, options)
    return LossMixture(format, losses, weights)


class LossMixture(nn.Module):
    """Σ weight · loss, over losses by name.

    Attributes:
        weights: name -> factor of that loss.
        takes_coarse_logits: see `SegmentationLoss`.
    """

    takes_coarse_logits = True

    def __init__(
        self, format: MaskFormat, losses: Mapping[str, SegmentationLoss], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.format = format
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, logits: Tensor | CoarseLogits, target: Tensor) -> Tensor:
        """Scalar loss of (N, C, H, W) logits against (N, P, H, W) planes."""
        return self.combine(self.terms(logits, target))

    def terms(self, logits: Tensor | CoarseLogits, target: Tensor) -> dict[str, Tensor]:
        """Each loss by name, before its weight; detach them for a log."""
        logits = admit(logits, target, self.format)
        pixel = {name: loss for name, loss in self.losses.items() if isinstance(loss, PixelLoss) and loss.sums_all}
        overlap = {name: loss for name, loss in self.losses.items() if isinstance(loss, OverlapLoss)}
        # All losses of overlap share the pass of the first pixel loss.
        passes: list[PixelTerm | None] = [loss.term for loss in pixel.values()]
        if overlap and not passes:
            passes = [None]
        sums = [
            loss_sums(logits, target, self.format.choices, term, overlap=bool(overlap) and number == 0)
            for number, term in enumerate(passes)
        ]
        values = {name: loss.value(of) for (name, loss), of in zip(pixel.items(), sums, strict=False)}
        values |= {name: loss.value(sums[0]) for name, loss in overlap.items()}
        rest = {name: cast(SegmentationLoss, loss) for name, loss in self.losses.items() if name not in values}
        values |= {name: loss.measure(logits, target) for name, loss in rest.items()}
        return {name: values[name] for name in self.losses}

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The scalar to train on, from `terms`."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()


def _make(name: str, format: MaskFormat, options: dict[str, Any]) -> SegmentationLoss:
    known = [p for p in inspect.signature(LOSSES[name]).parameters if p != "format"]
    for option in options:
        if option not in known:
            raise ValueError(f"loss {name} has no option {option!r}. {closest(option, ['weight', *known])}")
    return LOSSES[name](format, **options)


def _check_weight(name: str, weight: Any) -> float:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not (0.0 < weight < math.inf):
        raise ValueError(
            f"loss {name} has weight {weight!r}: expected a finite number above 0. Leave the loss out to switch it off."
        )
    return float(weight)
