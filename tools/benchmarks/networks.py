"""The networks whose training is measured, and the batches that they train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.peers import peer
from benchmarks.timing import Settings
from segkit import MaskFormat, build_model
from segkit.models.segmenter import Segmenter

_CLASSES = 19
_NETWORKS = (("unet", "Unet", "resnet34"), ("fpn", "FPN", "resnet50"))


@dataclass(frozen=True)
class Work:
    """One network and its batches.

    Attributes:
        architecture: as segkit calls it.
        smp_name: as SMP calls it.
        n: images of a batch.
    """

    architecture: str
    smp_name: str
    encoder: str
    n: int
    size_hw: tuple[int, int]
    classes: int

    def __str__(self) -> str:
        return f"{self.smp_name}/{self.encoder}, {self.n}x3x{self.size_hw[0]}x{self.size_hw[1]}, C={self.classes}"

    def segkit_model(self, device: torch.device) -> Segmenter:
        """With random weights and channels last."""
        model = build_model(self.architecture, self.encoder, MaskFormat.multiclass(range(self.classes)), weights=None)
        return channels_last(model.to(device))

    def smp_model(self, device: torch.device) -> nn.Module:
        """With random weights, as SMP makes it. Raises Absent without SMP."""
        smp = peer("segmentation-models-pytorch", "segmentation_models_pytorch")
        return getattr(smp, self.smp_name)(self.encoder, encoder_weights=None, classes=self.classes).to(device)


def works(settings: Settings) -> list[Work]:
    """Each network with what fits the device."""
    if settings.small:
        return [Work(*names, "resnet18", 2, (32, 64), 5) for *names, _ in _NETWORKS]
    n, side = (16, 512) if settings.device.type == "cuda" else (4, 256)
    return [Work(*names, n, (side, side), _CLASSES) for names in _NETWORKS]


def channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)
