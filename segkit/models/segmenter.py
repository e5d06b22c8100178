"""A network that takes images as they are stored and returns logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.models.statistics import PixelStatistics, pixel_statistics
from segkit.models.upsampling import find_last_upsampling
from segkit.ops.sizes import Resize, fit_size
from segkit.ops.upsample import CoarseLogits

log = logging.getLogger("segkit")

_FULL_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


@dataclass(frozen=True)
class Recipe:
    """What it takes to build the same network again; stored in a bundle.

    Attributes:
        architecture: a name of `ARCHITECTURES`, or `module:function` of a network of your own.
        encoder: name of the encoder, as segmentation-models-pytorch spells it.
        options: further arguments of the architecture.
    """

    architecture: str
    encoder: str
    options: dict[str, Any] = field(default_factory=dict)


class Segmenter(nn.Module):
    """Network, pixel statistics and mask format in one module.

    Args:
        network: (N, B, H, W) normalised float32 to (N, C, H, W) logits, sides multiples of `stride`.
        format: what the logits mean; it decides C.
        statistics: how stored values are normalised.
        recipe: how the network was built, for bundles.
        stride: sides are padded to multiples of it, and the logits are cropped back.
        min_side: smallest side that the network can take.
        resize: None, [height, width] or the length of the longer side, in pixels; used by `predict_logits`.
        pretrained: the encoder has learned before, so training gives it a lower learning rate.
        reading: how image files become arrays; `gray` follows from the number of bands.
    """

    def __init__(
        self,
        network: nn.Module,
        format: MaskFormat,
        statistics: PixelStatistics,
        recipe: Recipe,
        *,
        stride: int = 32,
        min_side: int = 1,
        resize: Resize = None,
        pretrained: bool = False,
        reading: ImageReading = ImageReading(),
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.network = network
        self._last_upsampling = find_last_upsampling(network)
        self.format = format
        self.recipe = recipe
        self.stride = stride
        self.min_side = min_side
        self.resize = resize
        self.pretrained = pretrained
        self.statistics = statistics
        self.reading = reading
        self._told_rescale = False

    @property
    def in_channels(self) -> int:
        """B, the number of bands of an image."""
        return self.mean.shape[1]

    @property
    def reading(self) -> ImageReading:
        """How image files become the arrays that this model takes."""
        return self._reading

    @reading.setter
    def reading(self, reading: ImageReading) -> None:
        self._reading = replace(reading, gray=self.in_channels == 1)

    @property
    def statistics(self) -> PixelStatistics:
        """Mean and standard deviation by which stored values are normalised."""
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: PixelStatistics) -> None:
        self._statistics = statistics
        place = next(self.network.parameters()).device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(statistics, name), dtype=torch.float32, device=place)
            # Not part of the state dict: weights stay interchangeable with the bare network's.
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    @overload
    def forward(self, images: Tensor) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, coarse: bool) -> Tensor | CoarseLogits: ...

    def forward(self, images: Tensor, coarse: bool = False) -> Tensor | CoarseLogits:
        """Logits of images at their own size.

        Args:
            images: (N, B, H, W) as stored, uint8, uint16 or float; any height and width.
            coarse: give them as `coarse_logits` does; through this door also where the model is wrapped, as for DDP.

        Returns:
            (N, C, H, W) float logits; in bfloat16 or float16 under autocast.

        Raises:
            ValueError: wrong number of bands, or a batch of one where BatchNorm needs two.
        """
        logits = self._compute(images)
        return logits if coarse else logits.full()

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        """Logits before the upsampling that ends the network: losses and `format.decode` do it piece by piece.

        Upsampled logits are the largest tensor of a training step, and every number in them is a mixture of four.
        """
        return cast(CoarseLogits, self(images, coarse=True))

    def _compute(self, images: Tensor) -> CoarseLogits:
        height, width = images.shape[-2:]
        padded = pad_to_stride(self.normalize(images), self.stride, self.min_side)
        # Whole networks in half precision (bf16-true) take their own type; autocast leaves weights in float32.
        padded = padded.to(next(self.network.parameters()).dtype)
        try:
            with self._without_last_upsampling():
                values = self.network(padded)
        except (ValueError, RuntimeError) as error:  # the second where the network is compiled
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"{self.recipe.architecture} normalises over the batch after pooling to one pixel, "
                f"and this training batch holds {len(images)} image. Use a batch_size of 2 or more."
            ) from error
        last = self._last_upsampling
        size_hw = (padded.shape[-2], padded.shape[-1])
        return CoarseLogits(values, size_hw, (height, width), last is None or last.align_corners)

    def predict_logits(self, images: Tensor) -> Tensor:
        """`forward`, through `resize` and back: logits at the stored size whatever the model works at."""
        return self.predict_coarse_logits(images).full()

    def predict_coarse_logits(self, images: Tensor) -> CoarseLogits:
        """`coarse_logits`, through `resize` and back."""
        stored_hw = (images.shape[-2], images.shape[-1])
        size_hw = fit_size(stored_hw, self.resize)
        if size_hw == stored_hw:
            return self.coarse_logits(images)
        logits = self(resize_images(images, size_hw))
        # Resize logits, not the decoded mask: a decision after interpolation keeps borders smooth.
        return CoarseLogits(logits, stored_hw, align_corners=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(N, B, H, W) stored values to float32 with mean 0 and deviation 1."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: this model takes (N, {self.in_channels}, H, W). "
                "Build it with `in_channels` equal to the number of bands."
            )
        # float() first: torch has no arithmetic for uint16.
        values = images if images.dtype == torch.float32 else images.float()
        scale = self._full_range_scale(images.dtype)
        if scale != 1.0:
            values = values * scale
        return ((values - self.mean) / self.std).contiguous(memory_format=memory_format_of(self.network))

    def _without_last_upsampling(self) -> AbstractContextManager:
        return nullcontext() if self._last_upsampling is None else self._last_upsampling.left_out()

    def _full_range_scale(self, dtype: torch.dtype) -> float:
        trained = _DTYPES[self.statistics.dtype]
        if dtype == trained or dtype not in _FULL_RANGE or trained not in _FULL_RANGE:
            return 1.0
        if not self._told_rescale:
            self._told_rescale = True
            log.warning("images are %s, the model was made for %s: rescaled by full range.", dtype, trained)
        return _FULL_RANGE[trained] / _FULL_RANGE[dtype]

    def fit_statistics(self, images: Callable[[], Any]) -> None:
        """Take pixel statistics from training images where the model has only defaults, or those of another depth.

        Those of a pretrained encoder, of a bundle to fine-tune from, or given by hand stay.

        Args:
            images: called without arguments, gives (H, W, B) arrays as stored.
        """
        arrays = iter(images())
        first = next(arrays)
        if first.shape[2] != self.in_channels:
            raise ValueError(
                f"the training images have {first.shape[2]} bands, the model takes {self.in_channels}: "
                "build it with `in_channels` equal to the number of bands."
            )
        if self.statistics.source != "default" and str(first.dtype) == self.statistics.dtype:
            return
        fitted = pixel_statistics([first, *arrays])
        self.statistics = replace(fitted, source="data")


def resize_images(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N, B, H, W) stored values at another size, float32, antialiased where it shrinks."""
    return F.interpolate(images.float(), size_hw, mode="bilinear", align_corners=False, antialias=True)


def pad_to_stride(images: Tensor, stride: int, min_side: int = 1) -> Tensor:
    """Repeat the last row and column until both sides are multiples of `stride` and at least `min_side`."""
    height, width = images.shape[-2:]
    pad_h = -max(height, min_side) % stride + max(height, min_side) - height
    pad_w = -max(width, min_side) % stride + max(width, min_side) - width
    if not (pad_h or pad_w):
        return images
    # Replicated, not zero: a black frame is an edge that the network has not seen in training.
    return F.pad(images, (0, pad_w, 0, pad_h), mode="replicate")


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """channels_last if the network's convolutions are stored so, which makes them faster on GPU and CPU."""
    for parameter in network.parameters():
        if parameter.ndim == 4 and min(parameter.shape[1:]) > 1:
            last = parameter.is_contiguous(memory_format=torch.channels_last)
            return torch.channels_last if last else torch.contiguous_format
    return torch.contiguous_format
