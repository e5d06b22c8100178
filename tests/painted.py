"""A model that says what the image shows, so that its answers are known without being computed."""

from __future__ import annotations

import torch
from torch import Tensor

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.models.steps import Steps
from segkit.ops.sizes import Resize, fit_size, resample
from segkit.ops.upsample import CoarseLogits


class Painted:
    """A `SegmentationModel` of one pixel: of class c the logit is 4 where a band holds c, else -4.

    Args:
        band: which of the bands.
    """

    stride = 1
    postprocess: Steps = ()

    def __init__(
        self, format: MaskFormat, reading: ImageReading = ImageReading(), band: int = 0, resize: Resize = None
    ) -> None:
        self.format, self.reading, self.band, self.resize = format, reading, band, resize
        self.seen: list[tuple[tuple[int, ...], tuple[float, ...] | None]] = []

    @property
    def in_channels(self) -> int:
        return 2 * self.reading.neighbours + 1

    def to(self, device: torch.device) -> Painted:
        return self

    def eval(self) -> Painted:
        return self

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return resample(images.float(), size_hw)

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        numbers = torch.arange(self.format.num_classes).view(1, -1, 1, 1)
        return CoarseLogits.of(torch.where(images[:, self.band : self.band + 1] == numbers, 4.0, -4.0))

    def predict_coarse_logits(self, images: Tensor, spacing_mm=None) -> CoarseLogits:
        stored_hw = (images.shape[-2], images.shape[-1])
        size_hw = fit_size(stored_hw, self.resize, spacing_mm)
        self.seen.append((size_hw, spacing_mm))
        logits = self.coarse_logits(self.resized(images, size_hw) if size_hw != stored_hw else images)
        return CoarseLogits(logits.full(), stored_hw, align_corners=False)
