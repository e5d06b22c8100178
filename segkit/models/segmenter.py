"""A network that takes images as they are stored and returns logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.models.statistics import DEFAULT_CLIPPING, Clipping, PixelStatistics, pixel_statistics
from segkit.models.steps import Steps
from segkit.models.upsampling import find_last_upsampling
from segkit.ops.sizes import Resize, fit_size, resample
from segkit.ops.upsample import CoarseLogits

log = logging.getLogger("segkit")

_FULL_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}
STORED_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
# Training images that tell whether all are as deep as the model's statistics say.
FEW = 16


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
        resize: the size the model works at, see `fit_size`; used by `predict_logits`.
        pretrained: the encoder has learned before, so training gives it a lower learning rate.
        reading: how image files become arrays; `gray` follows from the number of bands.
        clipping: what `fit_statistics` clips.

    Attributes:
        postprocess: steps for decoded planes, of `open_steps`; none at first.
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
        clipping: Clipping = DEFAULT_CLIPPING,
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.low: Tensor | None
        self.high: Tensor | None
        self.network = network
        self._last_upsampling = find_last_upsampling(network)
        self.format = format
        self.recipe = recipe
        self.stride = stride
        self.min_side = min_side
        self.resize = resize
        self.pretrained = pretrained
        self.clipping = clipping
        self.postprocess: Steps = ()
        self.statistics = statistics
        self.reading = reading
        self.new_head_bias: Tensor | None = None  # see `segkit.models.head`
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
        """What stored values are clipped to, and mean and deviation by which they are normalised."""
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: PixelStatistics) -> None:
        self._statistics = statistics
        place = next(self.network.parameters()).device
        low, high = zip(*statistics.clip, strict=True) if statistics.clip is not None else (None, None)
        for name, values in (("mean", statistics.mean), ("std", statistics.std), ("low", low), ("high", high)):
            buffer = None if values is None else torch.tensor(values, dtype=torch.float32, device=place)
            # Not part of the state dict: weights stay interchangeable with the bare network's.
            self.register_buffer(name, buffer if buffer is None else buffer.view(1, -1, 1, 1), persistent=False)

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

    def predict_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> Tensor:
        """`forward`, through `resize` and back: logits at the stored size whatever the model works at.

        Args:
            spacing_mm: (row, column) distances of all images, where the model works at a `Spacing`.
        """
        return self.predict_coarse_logits(images, spacing_mm).full()

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits:
        """`coarse_logits`, through `resize` and back."""
        stored_hw = (images.shape[-2], images.shape[-1])
        size_hw = fit_size(stored_hw, self.resize, spacing_mm)
        if size_hw == stored_hw:
            return self.coarse_logits(images)
        logits = self(self.resized(images, size_hw))
        # Resize logits, not the decoded mask: a decision after interpolation keeps borders smooth.
        return CoarseLogits(logits, stored_hw, align_corners=False)

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """(N, B, H, W) stored values at another size: float32 in units of the model's own depth."""
        return resample(self._in_own_depth(images), size_hw)

    def normalize(self, images: Tensor) -> Tensor:
        """(N, B, H, W) stored values to float32, clipped, with mean 0 and deviation 1."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: this model takes (N, {self.in_channels}, H, W). "
                "Build it with `in_channels` equal to the number of bands."
            )
        values = self._in_own_depth(images)
        if self.low is not None:
            values = values.clamp(self.low, self.high)
        return ((values - self.mean) / self.std).contiguous(memory_format=memory_format_of(self.network))

    def _in_own_depth(self, images: Tensor) -> Tensor:
        # float() first: torch has no arithmetic for uint16.
        values = images if images.dtype == torch.float32 else images.float()
        scale = self._full_range_scale(images.dtype)
        return values if scale == 1.0 else values * scale

    def _without_last_upsampling(self) -> AbstractContextManager:
        return nullcontext() if self._last_upsampling is None else self._last_upsampling.left_out()

    def _full_range_scale(self, dtype: torch.dtype) -> float:
        trained = STORED_DTYPES[self.statistics.dtype]
        scale = full_range_scale(dtype, trained)
        if scale != 1.0 and not self._told_rescale:
            self._told_rescale = True
            log.warning("images are %s, the model was made for %s: rescaled by full range.", dtype, trained)
        return scale

    def fit_statistics(self, images: Callable[[], Iterable[np.ndarray]]) -> None:
        """Take pixel statistics from training images where the model has only defaults, or those of another depth.

        Those of a pretrained encoder, of a bundle to fine-tune from, or given by hand stay; an encoder's only as long
        as no clipping is asked for. Where images come normalised, mean 0 and deviation 1 hold for all.

        Args:
            images: gives (H, W, B) arrays as `reading` reads them, in the same order each time it is called.
        """
        few = [(image.shape[2], image.dtype) for image in islice(images(), FEW)]
        bands = few[0][0] if few else self.in_channels
        if bands != self.in_channels:
            raise ValueError(
                f"the training images have {bands} bands, the model takes {self.in_channels}: "
                "build it with `in_channels` equal to the number of bands."
            )
        if self.reading.normalize != "dataset":
            if self.clipping.is_asked_for:
                raise ValueError(
                    f"the model clips stored values, but images are read with normalize={self.reading.normalize!r}: "
                    "leave `clip` and `window` out, or read with normalize='dataset'."
                )
            self.statistics = PixelStatistics((0.0,) * bands, (1.0,) * bands, "float32", "reading")
        elif not self._statistics_suit({dtype for _, dtype in few}):
            # Read again: so many images, whole, may not fit into memory.
            self.statistics = pixel_statistics(images(), self.clipping)

    def _statistics_suit(self, dtypes: set[np.dtype]) -> bool:
        source = self.statistics.source
        if source in ("default", "reading") or (source == "encoder" and self.clipping.is_asked_for):
            return False
        return bool(dtypes) and str(np.result_type(*dtypes)) == self.statistics.dtype


def full_range_scale(given: torch.dtype, wanted: torch.dtype) -> float:
    """What values of one integer depth are multiplied with to be of another; 1 where either is float."""
    if given not in _FULL_RANGE or wanted not in _FULL_RANGE:
        return 1.0
    return _FULL_RANGE[wanted] / _FULL_RANGE[given]


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
