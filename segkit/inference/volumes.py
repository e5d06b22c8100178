"""Answers for whole volumes: slices computed together, and averaged over the axes that the volume can be cut across.

A volume is one piece of work: it is decoded once, all its slices are answered, and it is written whole or not at all.
Over several axes the probabilities of each voxel are averaged, and the mean is decoded as a single answer would be.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from segkit.data.images import ImageRef
from segkit.data.reading import ImageReading
from segkit.formats.nifti_slices import axis_number, parse_axes, slice_shape, slice_spacing_mm
from segkit.formats.volumes import kept, volume_grid, volume_shape
from segkit.inference.inputs import Input
from segkit.inference.models import SegmentationModel
from segkit.inference.postprocess import postprocess
from segkit.inference.tiling import decoded, image_logits
from segkit.models.devices import autocast
from segkit.ops.sizes import Spacing, fit_size
from segkit.ops.upsample import CoarseLogits

log = logging.getLogger("segkit")

# Pixels that are computed together, at the working size. On a CPU small slices gain from company and large ones lose by
# it: 35x50 takes 19 ms alone and 5 ms among 16, 197x233 takes 70 ms among up to 8 and 110 ms among 16 (U-Net/lite0, one
# core of an AMD EPYC with AVX-512, 2026-11).
_CPU_PIXELS = 2**16
_GPU_PIXELS = 2**21
# Probabilities that have to wait for those across another axis lie in memory up to this size, beyond it in a file.
_MEMORY_BYTES = 2**31
# Voxels of other proportions than those of the slices that the model has learned from.
_UNEQUAL = 1.5


@dataclass(frozen=True, eq=False)
class VolumeAnswer:
    """The answer for a volume, slice by slice across the main axis of the model's reading.

    Attributes:
        planes: (D, H, W, P), all D slices.
        probs: (D, C, H, W) in [0, 1], None unless asked for; float32, or float16 in a temporary file where they are
            large.
    """

    planes: np.ndarray
    probs: np.ndarray | None = None


def check_axes(axes: Sequence[str] | None, reading: ImageReading) -> tuple[str, ...]:
    """The axes to average over, such as `zyx`; None is those that the model has learned from.

    Raises:
        ValueError: other letters, one twice, or not the main axis of `reading` among them.
    """
    chosen = parse_axes(reading.axis if axes is None else axes)
    if reading.main_axis not in chosen:
        raise ValueError(
            f"axes is {''.join(chosen)!r}, but answers are slices across {reading.main_axis}, as `data.axis` of the "
            f"training has it: name {reading.main_axis} too, or train with another axis."
        )
    return chosen


def by_volume(inputs: Iterable[Input]) -> list[list[Input]]:
    """Pieces of work: all slices of one volume together, every other image alone; in the order of their first."""
    pieces: dict[object, list[Input]] = {}
    for number, item in enumerate(inputs):
        is_slice = item.image.axis is not None
        pieces.setdefault((item.image.path, item.image.bands) if is_slice else number, []).append(item)
    return list(pieces.values())


def answer_volume(
    model: SegmentationModel,
    image: ImageRef,
    axes: Sequence[str] | None = None,
    *,
    device: torch.device,
    tile: int | None = None,
    batch_size: int | None = None,
    probabilities: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> VolumeAnswer:
    """Planes of all slices of a volume.

    Of each slice the network sees what it would see of it alone: its bands, its neighbours along the same axis, its
    (row, column) spacing, and values normalised over the same volume.

    Args:
        image: any slice of it.
        axes: see `check_axes`.
        device: where the model is.
        tile: see `image_logits`.
        batch_size: slices that are computed together; default by their size.
        probabilities: give them too.
        progress: called with the share that is done, in (0, 1].

    Raises:
        ValueError: no volume, one that cannot be read, or one that the model does not take.
        OSError: no room for the file of large probabilities.
    """
    chosen = check_axes(axes, model.reading)
    if image.axis is None:
        raise ValueError(f"{image}: no volume, so it has no slices across {', '.join(chosen)}. Leave `axes` out.")
    new = "".join(sorted(set(chosen) - set(model.reading.axis)))
    if new:
        _tell_new(new, model.reading.axis)
        if not isinstance(model.resize, Spacing):
            _tell_unequal(volume_grid(image.path).spacing_mm)
    own, format = model.reading.main_axis, model.format
    slices = _Slices(model, image, device, tile, batch_size)
    others = [axis for axis in chosen if axis != own]
    in_memory = (len(others) + probabilities) * math.prod(slices.shape) * format.num_classes * 4 <= _MEMORY_BYTES
    done, total = 0, sum(slices.count(axis) for axis in chosen)
    with kept(image.bands or (image.path,)), torch.inference_mode():
        waiting = []
        for axis in others:
            probs_of_axis = _room((slices.count(axis), format.num_classes, *slices.size_hw(axis)), in_memory)
            for part, logits in slices.logits(axis):
                probs_of_axis[part] = format.probabilities(logits.full()).cpu().numpy()
                done += part.stop - part.start
                progress(done / total)
            waiting.append(_turned(probs_of_axis, axis, own))
        count, size_hw = slices.count(own), slices.size_hw(own)
        planes = np.empty((count, *size_hw, format.num_planes), format.dtype)
        asked = _room((count, format.num_classes, *size_hw), in_memory) if probabilities else None
        for part, logits in slices.logits(own):
            if waiting or asked is not None:
                probs = format.probabilities(logits.full())
                for probs_of_axis in waiting:
                    probs += torch.from_numpy(np.array(probs_of_axis[part], np.float32)).to(device)
                probs /= len(chosen)
                logits = CoarseLogits.of(format.logits_of(probs)) if waiting else logits
                if asked is not None:
                    asked[part] = probs.cpu().numpy()
            planes[part] = decoded(model, logits).permute(0, 2, 3, 1).cpu().numpy()
            done += part.stop - part.start
            progress(done / total)
    return VolumeAnswer(postprocess(planes, model.postprocess, format, slices.spacing_mm(own)), asked)


class _Slices:
    """The slices of one volume across each axis, and their logits."""

    def __init__(
        self, model: SegmentationModel, image: ImageRef, device: torch.device, tile: int | None, batch_size: int | None
    ) -> None:
        self._model, self._image, self._device, self._tile = model, image, device, tile
        self._batch_size = batch_size
        self.shape = volume_shape(image.path)[:3]

    def count(self, axis: str) -> int:
        """Number of slices across `axis`."""
        return self.shape[axis_number(axis)]

    def size_hw(self, axis: str) -> tuple[int, int]:
        """(height, width) of each of them."""
        return slice_shape(self.shape, axis)

    def spacing_mm(self, axis: str) -> tuple[float, float, float]:
        """(slice, row, column) distances of slices across `axis`."""
        sizes = volume_grid(self._image.path).spacing_mm
        return sizes[axis_number(axis)], *slice_spacing_mm(sizes, axis)

    def logits(self, axis: str) -> Iterator[tuple[slice, CoarseLogits]]:
        """All slices across `axis`, in their order: which ones, and what the model says of them."""
        reading = self._model.reading
        spacing_mm = reading.spacing_mm(replace(self._image, axis=axis))
        size = self._batch_size or self._fitting(axis, spacing_mm)
        for start in range(0, self.count(axis), size):
            part = slice(start, min(start + size, self.count(axis)))
            images = [reading.read(replace(self._image, axis=axis, index=i)) for i in range(part.start, part.stop)]
            stored = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._device)
            with autocast(self._device):
                logits = image_logits(self._model, stored, self._tile, spacing_mm)
            yield part, logits

    def _fitting(self, axis: str, spacing_mm: Sequence[float] | None) -> int:
        """So many slices across `axis` are computed together."""
        height, width = fit_size(self.size_hw(axis), self._model.resize, spacing_mm)
        return max(1, (_CPU_PIXELS if self._device.type == "cpu" else _GPU_PIXELS) // (height * width))


def _turned(probs: np.ndarray, axis: str, own: str) -> np.ndarray:
    """(D, C, H, W) slices across `own` of (n, C, h, w) slices across `axis`, a view."""
    voxels = np.moveaxis(probs.swapaxes(2, 3), 0, 1 + axis_number(axis))  # (C, x, y, z)
    return np.moveaxis(voxels, 1 + axis_number(own), 0).swapaxes(2, 3)


def _room(shape: tuple[int, ...], in_memory: bool) -> np.ndarray:
    """An array to fill: float32, or float16 in a file that has no name and is gone with the array."""
    if in_memory:
        return np.empty(shape, np.float32)
    size = 2 * math.prod(shape)
    with tempfile.TemporaryFile() as file:
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # Taken now: a page that finds no room later ends the process.
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                f"{tempfile.gettempdir()}: no room for {size / 2**30:.1f} GiB of probabilities ({error.strerror}). "
                "Name a folder with more by the environment variable TMPDIR, or ask for fewer axes and probabilities."
            ) from None
        return np.memmap(file, np.float16, "r+", shape=shape)


@lru_cache
def _tell_new(new: str, learned: str) -> None:
    """Once for each choice of axes."""
    log.warning(
        "the model has learned from slices across %s and is asked for slices across %s too, which it has not seen: "
        "that made masks worse where it was measured (docs/volumes.md). Train with `data.axis: zyx`.",
        *(learned, new),
    )


@lru_cache
def _tell_unequal(spacing_mm: tuple[float, float, float]) -> None:
    """Once for each spacing."""
    if max(spacing_mm) > _UNEQUAL * min(spacing_mm):
        log.warning(
            "voxels of %s mm: slices across other axes look stretched to a model that was trained without "
            "`data.spacing_mm`, and may make the average worse.",
            " x ".join(f"{mm:.3g}" for mm in spacing_mm),
        )
