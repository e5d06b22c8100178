"""What can answer: a bundle, or whatever else takes stored images and returns logits; `open_model` opens each by path.

Everything that runs a model (windows, files, scores) needs only what `SegmentationModel` lists. A `Segmenter` is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from segkit.data.reading import ImageReading
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.exported import is_exported, open_exported
from segkit.models.bundle import load_codec, load_model
from segkit.models.steps import Steps
from segkit.ops.sizes import Resize
from segkit.ops.upsample import CoarseLogits


class SegmentationModel(Protocol):
    """Logits of images as they are stored, at any height and width.

    Attributes:
        format: what the logits mean.
        reading: how image files become the arrays that the model takes.
        resize: the size it works at, see `fit_size`.
        stride: sides that are multiples of it need no padding.
        postprocess: what is done to decoded planes of whole images and volumes, see `segkit.inference.postprocess`.
    """

    format: MaskFormat
    resize: Resize
    stride: int
    postprocess: Steps

    @property
    def reading(self) -> ImageReading: ...

    @property
    def in_channels(self) -> int:
        """B, the number of bands of an image."""

    def to(self, device: torch.device) -> SegmentationModel: ...

    def eval(self) -> SegmentationModel: ...

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """(N, B, H, W) stored values at another size."""

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        """Logits of (N, B, H, W) stored values at their own size; whole ones as `CoarseLogits.of(logits)`."""

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits:
        """The same through `resize` and back: logits at the stored size."""


def open_model(path: str | Path) -> tuple[SegmentationModel, Codec | None]:
    """The model at a path, on the CPU and in evaluation mode, and how its masks are written.

    Args:
        path: bundle, run folder, or a file that `segkit export` wrote.

    Raises:
        ValueError: nothing there that segkit can run.
    """
    if is_exported(path):
        exported = open_exported(path)
        exported.check_probabilities()
        return exported, exported.codec
    return load_model(path), load_codec(path)
