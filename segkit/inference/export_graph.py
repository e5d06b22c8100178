"""A model as one graph: stored images in, planes out, at any batch size, height and width."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.models.segmenter import STORED_DTYPES, Segmenter
from segkit.ops.sizes import Spacing, scaled

# Odd, unequal and of many strides: what the exporter sees is not to be taken for a rule, such as "the padding is 0".
_EXAMPLE_BATCH, _EXAMPLE_BLOCKS = 3, (9, 11)


class StoredToPlanes(nn.Module):
    """All that a `Segmenter` does to whole images, written so that exporters can follow it.

    Sizes are computed, never looked at; planes are decoded by `format.decode_plainly`.

    Args:
        model: stays as it is; the graph has a copy on the CPU.
        probabilities: give them as the second output.

    Raises:
        ValueError: the model needs more than the pixels of an image.
    """

    def __init__(self, model: Segmenter, probabilities: bool) -> None:
        super().__init__()
        if isinstance(model.resize, Spacing):
            raise ValueError(
                "it works at a spacing in mm, and a graph sees pixels, not how far they are apart. Predict with the "
                "bundle, or train with `data.resize`."
            )
        self.model = copy.deepcopy(model).cpu().eval()
        self.model.network = _with_plain_pooling(self.model.network)
        self.probabilities = probabilities
        self.stored_dtype = STORED_DTYPES[model.statistics.dtype]
        self.planes_dtype = STORED_DTYPES[str(model.format.dtype)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, B, H, W) of `stored_dtype` to (N, P, H, W) planes and, if wanted, (N, C, H, W) probabilities."""
        stored_hw = (images.shape[-2], images.shape[-1])
        resized = self.model.resize is not None
        height, width = self._working_size(*stored_hw)
        values = self.model.normalize(self.model.resized(images, (height, width)) if resized else images)
        rows, columns = self._repeated(height, images.device), self._repeated(width, images.device)
        padded = values.index_select(2, rows).index_select(3, columns)
        logits = self.model.network(padded)[..., :height, :width]
        if resized:
            logits = F.interpolate(logits, stored_hw, mode="bilinear", align_corners=False)
        planes = self.model.format.decode_plainly(logits).to(self.planes_dtype)
        return (planes, self.model.format.probabilities(logits)) if self.probabilities else (planes,)

    def example(self) -> Tensor:
        """Images for an exporter, which reads their shape and dtype alone."""
        height, width = (blocks * self.model.stride + 5 for blocks in _EXAMPLE_BLOCKS)
        shape = (_EXAMPLE_BATCH, self.model.in_channels, height, width)
        return torch.zeros(shape, dtype=self.stored_dtype)

    def _working_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """What `fit_size` gives, of numbers that are not known yet."""
        resize = self.model.resize
        if resize is None:
            return height, width
        if isinstance(resize, Sequence):
            return resize[0], resize[1]
        assert isinstance(resize, int)
        longest: Any = torch.sym_max(height, width)
        return tuple(torch.sym_max(1, scaled(side, resize, longest)) for side in (height, width))  # type: ignore[return-value]

    def _repeated(self, length: Any, device: torch.device) -> Tensor:
        """Numbers of the rows that `pad_to_stride` gives: the last is repeated up to a whole stride."""
        stride, least = self.model.stride, self.model.min_side
        whole: Any = torch.sym_max(length, least) if least > 1 else length
        return torch.arange((whole + stride - 1) // stride * stride, device=device).clamp_max(length - 1)


class PlainAdaptivePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products with matrices: exporters take its windows for those of one image size."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.size_hw = size_hw

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        down, across = (
            self._windows(small, side, values) for small, side in zip(self.size_hw, values.shape[-2:], strict=True)
        )
        return down @ values @ across.T

    @staticmethod
    def _windows(small: int, side: Any, like: Tensor) -> Tensor:
        """(small, side): window i averages from floor(i side / small) to ceil((i + 1) side / small)."""
        place = torch.arange(side, device=like.device)
        number = torch.arange(small, device=like.device)[:, None]
        first, end = number * side // small, ((number + 1) * side + small - 1) // small
        inside = (place >= first) & (place < end)
        return inside.to(like.dtype) / (end - first)


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                size_hw = (size, size) if isinstance(size, int) else size
                # Pooling to one pixel is a mean, which exports as it is; None keeps a side.
                if size_hw is not None and None not in size_hw and tuple(size_hw) != (1, 1):
                    setattr(module, name, PlainAdaptivePool((int(size_hw[0]), int(size_hw[1]))))  # type: ignore[arg-type]
    return network
