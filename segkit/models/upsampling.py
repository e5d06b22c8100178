"""The bilinear upsampling that ends most networks: found, and left out while coarse logits are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Whose `forward` ends with the head.
_MODULES = ("segmentation_models_pytorch.base.model", "segmentation_models_pytorch.decoders.dpt.model")


class DeferrableUpsample(nn.Upsample):
    """`nn.Upsample` that does nothing while `deferred`."""

    deferred = False

    def forward(self, input: Tensor) -> Tensor:
        return input if self.deferred else super().forward(input)


@dataclass(frozen=True)
class LastUpsampling:
    """Where a network upsamples last, and how to leave it out.

    Attributes:
        module, switch: setting attribute `switch` of `module` to `off` leaves the upsampling out, to `on` puts it back.
        align_corners: as `F.interpolate` means it.
    """

    module: nn.Module
    switch: str
    on: Any
    off: Any
    align_corners: bool

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Within it the network returns logits at the resolution of its last convolution.

        A second thread in the same network may get upsampled logits all the same: `CoarseLogits` tells by the size.
        """
        setattr(self.module, self.switch, self.off)
        try:
            yield
        finally:
            setattr(self.module, self.switch, self.on)


def find_last_upsampling(network: nn.Module) -> LastUpsampling | None:
    """The upsampling in the head of a network of segmentation-models-pytorch; None for any other network.

    It is replaced by one that can be left out, and has no parameters: weights and their names stay as they are. One
    that is followed by an activation, or is part of a `forward` of one's own, may not be the last step: left alone.
    """
    if type(network).forward.__module__ not in _MODULES:
        return None
    head: Any = getattr(network, "segmentation_head", None)
    if isinstance(head, nn.Sequential) and len(head) == 3 and _is_identity(head[2]):
        last = head[1]
        if isinstance(last, nn.Upsample) and last.mode == "bilinear":
            if not isinstance(last, DeferrableUpsample):
                head[1] = DeferrableUpsample(last.size, last.scale_factor, last.mode, last.align_corners)
            return LastUpsampling(head[1], "deferred", False, True, bool(last.align_corners))
    elif type(head).__name__ == "DPTSegmentationHead" and _is_identity(head.activation):
        # It calls F.interpolate itself, by this factor and with aligned corners.
        return LastUpsampling(head, "upsampling_factor", head.upsampling_factor, 1, True)
    return None


def _is_identity(module: nn.Module) -> bool:
    """True for no activation, which segmentation-models-pytorch wraps in a module of its own."""
    return isinstance(getattr(module, "activation", module), nn.Identity)
