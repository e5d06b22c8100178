"""`PixelCounts`: exact counts per image and class, joined over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from segkit.formats.mask_format import MaskFormat


class Counts:
    """What `PixelCounts.compute` returns; read only.

    A plain class: torchmetrics takes dataclasses and tuples apart and squeezes tensors of one element.

    Attributes:
        format: the mask format that says what the classes are.
        rows: (n, C, 4) int64 on the CPU, [tp, fp, fn, tn] of each class in each image.
        indices: (n,) int64 on the CPU, number of the image in its data set, ascending; -1 where not told.
    """

    __slots__ = ("format", "indices", "rows")

    def __init__(self, format: MaskFormat, rows: Tensor, indices: Tensor) -> None:
        assert rows.shape == (len(indices), format.num_classes, 4), rows.shape
        self.format = format
        self.rows = rows
        self.indices = indices

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)


class PixelCounts(Metric):
    """Counts tp, fp, fn, tn of decoded masks against the truth.

    `compute` gives `Counts`; `segkit.metrics.scores.Scores` makes scores of them. Each image keeps a row of its own
    with its number, so that several processes join exactly: an image that a distributed sampler handed out twice
    counts once, and a process that saw no image is no problem.

    Args:
        options: of `torchmetrics.Metric`, such as `sync_on_compute` or `process_group`.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    rows: list[Tensor]
    indices: list[Tensor]

    def __init__(self, format: MaskFormat, **options: Any) -> None:
        super().__init__(**options)
        self.format = format
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("indices", default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor, indices: Sequence[int] | Tensor | None = None) -> None:
        """Count images of one size; other calls may bring other sizes.

        Args:
            pred: (N, P, H, W) decoded planes. `ignore_index` there is *none*: a miss of whatever class is true.
            target: (N, P, H, W) planes; where they hold `ignore_index`, nothing counts.
            indices: number of each image in the data set. Give them whenever several processes count together,
                or images that were padded in twice are counted twice.
        """
        _check_planes(pred, target, self.format)
        device, n = target.device, len(target)
        numbers = torch.full((n,), -1) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        if numbers.shape != (n,):
            raise ValueError(f"indices have shape {tuple(numbers.shape)}, expected ({n},): one number per image.")
        self.rows.append(self.format.count(pred.to(device), target))
        self.indices.append(numbers.to(device))

    def compute(self) -> Counts:
        """All images seen so far, those of other processes included, in the order of their numbers."""
        rows = _join(self.rows, self._no_rows()).cpu()
        indices = _join(self.indices, self._no_indices()).cpu()
        # Stable: images without a number keep the order in which they came.
        indices, order = indices.sort(stable=True)
        rows = rows[order]
        first = torch.ones_like(indices, dtype=torch.bool)
        first[1:] = (indices[1:] != indices[:-1]) | (indices[1:] < 0)
        _check_repeats(rows, indices, first)
        return Counts(self.format, rows[first], indices[first])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """See torchmetrics. A process without images contributes empty states of the right shape and type."""
        # torchmetrics would send an empty *float* tensor of one dimension, on which the join aborts.
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(self._no_rows())
            self.indices.append(self._no_indices())
        super().sync(*args, **kwargs)

    def _no_rows(self) -> Tensor:
        return torch.zeros((0, self.format.num_classes, 4), dtype=torch.int64, device=self.device)

    def _no_indices(self) -> Tensor:
        return torch.zeros((0,), dtype=torch.int64, device=self.device)


def pixels_of_truth(rows: Tensor) -> Tensor:
    """(..., 4) counts to (..., 2): pixels of the class, and all others; no prediction moves them."""
    tp, fp, fn, tn = rows.unbind(-1)
    return torch.stack([tp + fn, fp + tn], dim=-1)


def _check_planes(pred: Tensor, target: Tensor, format: MaskFormat) -> None:
    for name, planes in (("pred", pred), ("target", target)):
        if planes.ndim != 4 or planes.shape[1] != format.num_planes or planes.shape != target.shape:
            raise ValueError(
                f"{name} has shape {tuple(planes.shape)} (target: {tuple(target.shape)}), expected both of shape "
                f"(images, {format.num_planes}, height, width). Decode logits with `format.decode` first."
            )
        if planes.dtype not in (format.torch_dtype, torch.int32, torch.int64):
            raise ValueError(
                f"{name} is {planes.dtype}, expected {format.torch_dtype} planes. "
                "Decode logits with `format.decode`, and pass targets as codecs read them."
            )


def _join(state: list[Tensor] | Tensor, empty: Tensor) -> Tensor:
    """A state is a list of tensors, but one tensor after processes were joined."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else empty


def _check_repeats(rows: Tensor, indices: Tensor, first: Tensor) -> None:
    # Predictions may differ by a pixel from process to process, the truth of one image never does.
    truth = pixels_of_truth(rows)
    differ = ~first[1:] & (truth[1:] != truth[:-1]).flatten(1).any(1)
    if differ.any():
        raise ValueError(
            f"image number {int(indices[1:][differ][0])} was counted twice with different truths: numbers must be "
            "those of the whole data set, the same in all processes. Call `reset` between two data sets."
        )
