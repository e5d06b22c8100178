"""From samples to batches: which samples, in which order, on which rank, and how they are put together."""

from __future__ import annotations

import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from segkit.data.datasets import MaskDataset
from segkit.data.sample import Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples of equal size.

    Images of several depths become the widest: 8-bit beside 16-bit is scaled to its full range, integers beside
    float32 keep their values.

    Raises:
        ValueError: sizes or bands differ.
    """
    first = samples[0]
    for sample in samples:
        if sample.size_hw != first.size_hw:
            raise ValueError(
                f"a batch of images of {len({s.size_hw for s in samples})} sizes: {first.stem} is "
                f"{_size_text(first)}, {sample.stem} is {_size_text(sample)} (height x width). "
                "Set `data.crop` or `data.resize`, so that all are the same, or `train.batch_size` to 1."
            )
        if sample.image.shape[2] != first.image.shape[2]:
            raise ValueError(
                f"a batch of images of several kinds: {first.stem} has {first.image.shape[2]} bands, "
                f"{sample.stem} has {sample.image.shape[2]}. Store all images with the same bands."
            )
    dtype = np.result_type(*(s.image.dtype for s in samples))
    # (N, H, W, B) in memory, seen as (N, B, H, W): nothing is turned here, and convolutions are fastest that way.
    images = torch.from_numpy(np.stack([in_depth(s.image, dtype) for s in samples])).permute(0, 3, 1, 2)
    # Turned one by one: planes that were unpacked from bits lie in this order already.
    planes = np.stack([s.planes.transpose(2, 0, 1) for s in samples])
    # torch computes little in uint16; see MaskFormat.torch_dtype.
    depth = np.uint8 if planes.dtype == np.uint8 else np.int32
    target = torch.from_numpy(np.ascontiguousarray(planes, dtype=depth))
    shared = first.spacing_mm if len({s.spacing_mm for s in samples}) == 1 else None
    return Batch([s.stem for s in samples], images, target, shared)


def group_by_size(numbered: Sequence[tuple[int, Sample]]) -> list[Batch]:
    """One batch for each size (and number of bands, depth, spacing) among the samples, in the order of first sight.

    Args:
        numbered: each sample with its number in the data set, which becomes `Batch.indices`.
    """
    groups: dict[tuple, list[tuple[int, Sample]]] = defaultdict(list)
    for index, sample in numbered:
        groups[(sample.image.shape, sample.image.dtype.str, sample.spacing_mm)].append((index, sample))
    return [replace(collate([s for _, s in group]), indices=[i for i, _ in group]) for group in groups.values()]


class Numbered(Dataset):
    """The samples of a data set, each with its number; keys are those of `SeededSampler`."""

    def __init__(self, ds: MaskDataset) -> None:
        self.ds = ds

    def __len__(self) -> int:
        return len(self.ds)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Sample]:
        return key[1], self.ds[key]


class SeededSampler(Sampler[tuple[int, int]]):
    """Yields (pass, index), a function of (seed, epoch) alone; ranks take turns.

    A pass sees every sample once. Passes are counted over all epochs, so that samples are augmented in another way in
    each: epoch 2 with `repeat` 3 is passes 6, 7 and 8. Batches may reach from one pass into the next.

    Args:
        length: number of samples.
        seed: of the order.
        shuffle: a new order in each pass, or the order of the data set.
        rank: of this process.
        world_size: number of processes; each gets the same number of samples where `even`.
        even: give all ranks the same number, as training in step needs: the first samples are repeated, or, where
            each rank has `enough` samples without, the last ones are left out. Without it every sample comes
            exactly once.
        enough: samples of a rank, usually a batch; None repeats always.
        repeat: passes of an epoch.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
        enough: int | None = None,
        repeat: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes: expected 0 to {world_size - 1}.")
        self.length, self.seed, self.shuffle, self.repeat = length, seed, shuffle, repeat
        self.rank, self.world_size, self.even, self.enough = rank, world_size, even, enough
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Take the order of `epoch`; `start` samples of this rank were seen before an interruption.

        Without `start`, another epoch begins at its first sample, and that of before is left as it is.
        """
        if start is not None or epoch != self.epoch:
            self.start = start or 0
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for key in self._order(self.epoch)[self.rank :: self.world_size][self.start :].tolist():
            yield tuple(key)

    def __len__(self) -> int:
        return len(range(self.rank, self._evened_length, self.world_size)) - self.start

    @property
    def _evened_length(self) -> int:
        length = self.length * self.repeat
        if not self.even:
            return length
        share = length // self.world_size
        if self.enough is None or share < self.enough:
            share = -(-length // self.world_size)
        return share * self.world_size

    def _order(self, epoch: int) -> np.ndarray:
        """(samples of all ranks, 2) numbers of pass and sample."""
        passes = range(epoch * self.repeat, (epoch + 1) * self.repeat)
        numbers = np.repeat(passes, self.length)
        indices = np.concatenate([self._order_of_pass(number) for number in passes])
        return np.stack([np.resize(column, self._evened_length) for column in (numbers, indices)], axis=1)

    def _order_of_pass(self, number: int) -> np.ndarray:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng([self.seed, number]).shuffle(order)
        return order


def train_loader(
    ds: MaskDataset,
    batch_size: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    repeat: int = 1,
    start_method: str | None = None,
) -> DataLoader:
    """Batches of augmented samples; `loader.sampler.set_epoch(e)` before each epoch.

    The last batch is dropped when it is not full and there is another one. W ranks with batches of N see in each step
    the samples that one process with batches of W * N sees.

    Args:
        batch_size: samples per batch and rank.
        workers: processes that read and augment; default the cores of this rank, at most 8. 0 reads in this one.
        repeat: how often an epoch sees every sample, see `SeededSampler`.
        start_method: `fork` or `spawn`; default that of the platform.
    """
    check_batch_size(batch_size)
    sampler = SeededSampler(len(ds), seed, shuffle, rank, world_size, enough=batch_size, repeat=repeat)
    return DataLoader(
        ds,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        drop_last=len(sampler) > batch_size,
        **_process_options(workers, world_size, start_method, persistent=True),
    )


def eval_loader(
    ds: MaskDataset,
    batch_size: int = 1,
    *,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    start_method: str | None = None,
) -> DataLoader:
    """Lists of batches, one for each size among the next `batch_size` samples; every sample once over all ranks.

    A rank without samples gets one empty list.
    """
    check_batch_size(batch_size)
    sampler = SeededSampler(len(ds), 0, False, rank, world_size, even=False)
    order: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler}
    if len(sampler) == 0:
        # Lightning would leave the whole validation out, in which the other ranks wait for this one.
        order = {"batch_sampler": [[]]}
    return DataLoader(
        Numbered(ds),
        **order,
        collate_fn=group_by_size,
        **_process_options(workers, world_size, start_method, persistent=False),
    )


def default_workers(world_size: int = 1) -> int:
    """Cores this process may use, shared with the other ranks of the machine; at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return min(8, max(1, cores // max(1, local)))


def in_depth(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`image` in the widest depth of a batch: 8-bit scaled to the full range of 16-bit, else with the same values."""
    if image.dtype == np.uint8 and dtype == np.uint16:
        return image.astype(np.uint16) * 257
    return image.astype(dtype, copy=False)


def check_batch_size(batch_size: int) -> None:
    """Refuse batches of no samples."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")


def _process_options(
    workers: int | None, world_size: int, start_method: str | None, persistent: bool
) -> dict[str, Any]:
    count = default_workers(world_size) if workers is None else workers
    if count < 0:
        raise ValueError(f"workers is {count}: expected 0 or more.")
    # Pages are locked for copies to a GPU; without one that is a cost for nothing.
    options: dict[str, Any] = {"num_workers": count, "pin_memory": torch.cuda.is_available()}
    if count:
        options |= {
            "worker_init_fn": _start_worker,
            "persistent_workers": persistent,
            "multiprocessing_context": start_method,
        }
    return options


def _start_worker(worker: int) -> None:
    # The workers are the parallelism: OpenCV's threads inside them would fight over the same cores. torch turns its
    # own off there.
    import cv2

    cv2.setNumThreads(0)
    _end_only_for_parent()


def _end_only_for_parent() -> None:
    # Schedulers send SIGTERM to all processes of a job. The one that trains saves, and needs its workers to finish the
    # step; they end when it says so, or is gone. Without `sigwaitinfo`, as on macOS, nobody tells who sent it.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _size_text(sample: Sample) -> str:
    return "{}x{}".format(*sample.size_hw)
