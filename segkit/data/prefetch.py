"""Batches on the device before they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from segkit.data.sample import Batch

# What a loader of segkit gives: a batch for training, a list of them for scoring.
Batches = Batch | list[Batch]


class DeviceLoader:
    """The batches of a loader, on a device; on CUDA the next one is copied while the current one computes.

    Images and planes are copied as they are stored: a quarter of the bytes of float32. For the copies to overlap, the
    loader has to pin its memory, as those of `segkit.data.loaders` do where there is a GPU. One batch more than
    without it lies on the device, and an error in the loader comes one batch early.

    Args:
        loader: gives a `Batch`, or lists of them.
        device: where to.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> Any:
        """That of the loader; told the epoch by `set_epoch`, which Lightning does."""
        return self.loader.sampler

    @property
    def batch_sampler(self) -> Any:
        """That of the loader."""
        return self.loader.batch_sampler

    def __iter__(self) -> Iterator[Any]:
        if self.device.type == "cuda":
            yield from self._copied_ahead()
        else:
            for batch in self.loader:
                yield _moved(batch, self.device)

    def _copied_ahead(self) -> Iterator[Batches]:
        side = torch.cuda.Stream(self.device)
        copied = None
        for batch in self.loader:
            # Before the next copy begins, so that computing waits for its own batch alone.
            ready = None if copied is None else _handed_over(copied, side, self.device)
            with torch.cuda.stream(side):
                copied = _moved(batch, self.device)
            if ready is not None:
                yield ready
        if copied is not None:
            yield _handed_over(copied, side, self.device)


def _moved(batch: Batches, device: torch.device) -> Batches:
    if isinstance(batch, list):
        return [part.to(device, non_blocking=True) for part in batch]
    return batch.to(device, non_blocking=True)


def _handed_over(batch: Batches, side: torch.cuda.Stream, device: torch.device) -> Batches:
    """The same batch, for the stream that computes."""
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(side)
    for part in batch if isinstance(batch, list) else [batch]:
        # The memory was asked for by the side stream, which would copy into it as soon as Python lets go of it.
        part.images.record_stream(computing)
        part.target.record_stream(computing)
    return batch
