"""A data set that lies on the device as a whole, and training batches that are made there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segkit.data.datasets import MaskDataset, sample_seed
from segkit.data.device_augment import find_places, recolor, take_pixels, take_planes
from segkit.data.fast_augment import FAST_PRESETS, FastPreset, draw
from segkit.data.focus import Focus, KeptPixels
from segkit.data.intensity import clipped
from segkit.data.loaders import SeededSampler, check_batch_size, in_depth
from segkit.data.memory import available_memory
from segkit.data.sample import Batch, Sample
from segkit.suggest import closest

# `none` cuts crops and nothing else.
DEVICE_PRESETS = {"none": FastPreset(flip_x_p=0.0, light_p=0.0), **FAST_PRESETS}

# Of the free memory; the rest is for weights, gradients and activations, which training asks for afterwards.
_SHARE = 0.5
_TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


class DeviceDataset(Dataset[Batch]):
    """Images and planes of a `MaskDataset` on a device, as they are stored there or by its `resize`.

    Each sample of a batch is cut and changed on the device by what is drawn from (seed, epoch, index) alone, so it is
    the same in every batch, on every rank and after a restart. All samples are read into memory first, then copied.

    Args:
        data: its `augment` is None or has the name of a preset of `DEVICE_PRESETS` as `spec`; and `crop`.
        device: where the data lie.
        workers: threads that read; None for one per core, at most 8.

    Attributes:

    Raises:
        ValueError: another augmentation, images that differ in bands, or more data than fit.
    """

    def __init__(self, data: MaskDataset, device: torch.device, *, workers: int | None = None) -> None:
        self.preset, self.crop = device_augment(data)
        self.stems, self.seed, self.device = list(data.stems), data.seed, device
        self._ignore_index = data.format.ignore_index
        samples = _read(data, device, workers)
        self._sizes_hw = [sample.size_hw for sample in samples]
        ends = np.cumsum([height * width for height, width in self._sizes_hw])
        self._starts = [0, *ends[:-1].tolist()]
        dtype = np.result_type(*(sample.image.dtype for sample in samples))
        self._dtype = _TORCH_DTYPES[dtype.name]
        clip = getattr(data.augment, "clip", None)
        images = [in_depth(clipped(sample.image, clip), dtype) for sample in samples]
        self._focus: Focus | None = getattr(data.augment, "focus", None)
        # The planes go to the device, and asking it where a class is would wait for it.
        self._pixels = (
            []
            if self._focus is None
            else [KeptPixels(sample.planes, self._focus, [data.seed, index]) for index, sample in enumerate(samples)]
        )
        self._images = _joined(images, device)
        self._planes = _joined([sample.planes for sample in samples], device)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The batch of samples (epoch, index); `DataLoader` asks for whole batches by this name."""
        indices = [index for _, index in keys]
        crop = self.crop or self._one_size(indices)
        sizes_hw = [self._sizes_hw[index] for index in indices]
        seeds = [sample_seed(self.seed, epoch, index) for epoch, index in keys]
        focus = self._focus
        aims = [focus.aim(self._pixels[i], s) if focus else None for i, s in zip(indices, seeds, strict=True)]
        drawn = (draw(self.preset, crop, *sample) for sample in zip(sizes_hw, seeds, aims, strict=True))
        moves, colours = zip(*drawn, strict=True)
        places = find_places(moves, [self._starts[index] for index in indices], sizes_hw, self.device)
        target = take_planes(self._planes, places, self._ignore_index)
        values = recolor(take_pixels(self._images, places), colours, eight_bit=self._dtype == torch.uint8)
        if values.is_floating_point() and not self._dtype.is_floating_point:
            values = values.round()
        # (N, H, W, B) in memory, seen as (N, B, H, W), as `collate` makes them.
        images = values.to(self._dtype).permute(0, 3, 1, 2)
        return Batch([self.stems[index] for index in indices], images, target)

    def _one_size(self, indices: Sequence[int]) -> tuple[int, int]:
        sizes = {self._sizes_hw[i]: self.stems[i] for i in indices}
        if len(sizes) > 1:
            shown = ", ".join(f"{stem} is {h}x{w}" for (h, w), stem in sizes.items())
            raise ValueError(
                f"a batch of images of {len(sizes)} sizes: {shown} (height x width). "
                "Set `data.crop` or `data.resize`, so that all are the same, or `train.batch_size` to 1."
            )
        return next(iter(sizes))


def device_train_loader(
    data: DeviceDataset,
    batch_size: int,
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    repeat: int = 1,
) -> DataLoader:
    """As `train_loader`: the same samples in the same order; the batches are on the device already."""
    check_batch_size(batch_size)
    sampler = SeededSampler(len(data), seed, shuffle, rank, world_size, enough=batch_size, repeat=repeat)
    return DataLoader(
        data, batch_size=batch_size, sampler=sampler, collate_fn=_as_it_is, drop_last=len(sampler) > batch_size
    )


def device_augment(data: MaskDataset) -> tuple[FastPreset, tuple[int, int] | None]:
    """Preset and crop of the augmentation of `data`.

    Raises:
        ValueError: it is none of `DEVICE_PRESETS`.
    """
    if data.augment is None:
        return DEVICE_PRESETS["none"], None
    spec = getattr(data.augment, "spec", None)
    if not isinstance(spec, str) or spec not in DEVICE_PRESETS:
        found = f"{spec!r}" if isinstance(spec, str) else "a list of transforms" if spec else f"{data.augment!r}"
        nearest = f" {closest(spec, DEVICE_PRESETS)}" if isinstance(spec, str) else ""
        raise ValueError(
            f"augment is {found}, which runs on the CPU, but the data lie on the device: expected one of "
            f"{', '.join(DEVICE_PRESETS)}.{nearest} Or keep the data off the device (`data.cache: disk` or `ram`)."
        )
    return DEVICE_PRESETS[spec], getattr(data.augment, "crop", None)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be asked for on `device`, None where nobody tells."""
    if device.type == "cuda":
        # What torch holds but does not use is free as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory()


def _read(data: MaskDataset, device: torch.device, workers: int | None) -> list[Sample]:
    """All samples, not augmented; stops as soon as they are more than fit."""
    plain, free = data.without_augment(), free_memory(device)
    samples: list[Sample] = []
    size = 0
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            for sample in pool.map(plain.__getitem__, range(len(plain))):
                samples.append(sample)
                size += sample.image.nbytes + sample.planes.nbytes
                if free is not None and size > _SHARE * free:
                    raise ValueError(_too_large_text(len(samples), len(plain), size, free, device))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _check_bands(samples)
    return samples


def _too_large_text(read: int, total: int, size: int, free: int, device: torch.device) -> str:
    gib = 1 << 30
    return (
        f"the first {read} of {total} training samples take {size / gib:.2f} GiB decoded, so all take about "
        f"{size * total / read / gib:.2f} GiB; {device} has {free / gib:.2f} GiB free, of which data may take "
        f"{_SHARE:.0%}, as training needs the rest. Use `data.cache: disk` or `ram`, a smaller `data.resize`, or a "
        "device with more memory."
    )


def _check_bands(samples: Sequence[Sample]) -> None:
    first = samples[0]
    for sample in samples:
        if sample.image.shape[2] != first.image.shape[2]:
            raise ValueError(
                f"images of several kinds: {first.stem} has {first.image.shape[2]} bands, {sample.stem} has "
                f"{sample.image.shape[2]}. Store all images with the same bands."
            )


def _joined(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """(pixels of all, bands) on `device`; uint16 as the int16 of the same bits, which torch can gather."""
    flat = [a.reshape(-1, a.shape[2]).view(np.int16 if a.dtype == np.uint16 else a.dtype) for a in arrays]
    dtype = torch.from_numpy(np.empty(0, flat[0].dtype)).dtype
    joined = torch.empty((sum(map(len, flat)), flat[0].shape[1]), dtype=dtype, device=device)
    start = 0
    for part in flat:
        # Views into a map are read-only, which torch does not take: one copy at a time.
        joined[start : start + len(part)].copy_(torch.from_numpy(np.require(part, requirements=["C", "W"])))
        start += len(part)
    return joined


def _as_it_is(batch: Any) -> Any:
    return batch
