"""What all losses share: shapes are checked at the door."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segkit.formats.mask_format import MaskFormat
from segkit.ops.choices import at_least_float32
from segkit.ops.upsample import CoarseLogits


class SegmentationLoss(nn.Module, ABC):
    """A loss that knows the mask format: `loss(logits, target)` is a scalar in float32 or better.

    Ignored pixels move neither its value nor a gradient, even where the logits there are infinite or NaN. A batch
    in which every pixel is ignored costs exactly 0. Logits may be coarse: those before the upsampling that ends a
    network, which is then part of the loss. It is written to memory only where pixels are ranked, or compared with
    their neighbours.

    Attributes:
        takes_coarse_logits: True, as `segkit.training.step.training_loss` asks of any loss.
    """

    takes_coarse_logits = True

    def __init__(self, format: MaskFormat) -> None:
        super().__init__()
        self.format = format

    def forward(self, logits: Tensor | CoarseLogits, target: Tensor) -> Tensor:
        """Loss of (N, C, H, W) logits against (N, P, H, W) planes."""
        return self.measure(admit(logits, target, self.format), target)

    @abstractmethod
    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """The same for logits that `admit` let in; what a loss implements."""


def admit(logits: Tensor | CoarseLogits, target: Tensor, format: MaskFormat) -> CoarseLogits:
    """Logits that belong to the target and to the format.

    Looks at shapes and types only, never at values: nothing waits for the device.

    Raises:
        ValueError: logits and target do not belong together, or not to the format.
    """
    c, p = format.num_classes, format.num_planes
    values = logits.values if isinstance(logits, CoarseLogits) else logits
    if values.ndim != 4 or values.shape[1] != c or not values.is_floating_point():
        raise ValueError(
            f"logits are {values.dtype} of shape {tuple(values.shape)}, expected floats of shape "
            f"(images, {c}, height, width): one channel for each class of {_some(format.names)}."
        )
    expected = (logits.shape[0], p, *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected {expected} for logits of shape {tuple(logits.shape)}: "
            f"{p} plane{'s' if p > 1 else ''} per image, as codecs read them, at the size of the logits."
        )
    if target.dtype not in (format.torch_dtype, torch.int32, torch.int64):
        raise ValueError(
            f"target is {target.dtype}, expected {format.torch_dtype} planes as codecs read them, which hold "
            f"{format.ignore_index} where ignored. Convert with `target.to({format.torch_dtype})`."
        )
    return CoarseLogits.of(logits)


def full_logits(logits: CoarseLogits) -> Tensor:
    """(N, C, H, W) in float32 or better, for a loss that ranks pixels or looks at their neighbours."""
    return replace(logits, values=at_least_float32(logits.values)).full()


def check_number(name: str, value: Any, below: float = math.inf) -> float:
    """`value` as a float if it is a number in [0, below)."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number < below:
        upper = "" if math.isinf(below) else f" and below {below:g}"
        raise ValueError(f"{name} is {value!r}: expected a finite number, at least 0{upper}.")
    return number


def _some(names: Iterable[str], limit: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
