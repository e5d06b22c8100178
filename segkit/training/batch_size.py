"""The largest batch whose training step fits in the memory of the device."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.data.memory import available_memory, peak_memory
from segkit.models.devices import pick_device
from segkit.models.segmenter import Segmenter
from segkit.processes import is_main_process, started_by_launcher
from segkit.training.averaging import AveragedWeights
from segkit.training.distributed import count_processes
from segkit.training.engine import pick_precision
from segkit.training.probing import probe, probe_trainer
from segkit.training.settings import TrainSettings

# Larger batches make steps few, and seldom faster.
MOST = 256
# Of the memory; what is left is for fragments, and for images that are larger than those of the trial.
_SHARE = 0.9
_VARIABLE = "SEGKIT_BATCH_SIZE"


def fit_batch_size(
    model: Segmenter,
    train: MaskDataset,
    val: MaskDataset | None,
    *,
    loss: nn.Module,
    settings: TrainSettings,
    data_on_device: bool = False,
) -> int:
    """The largest power of two, up to 256 and the training images of a process, that trains within 0.9 of the memory.

    A copy of `model`, fitted to the pixels of `train`, trains and validates for two steps with ever larger batches: on
    CUDA until memory is exceeded; on a CPU, where that would end the process, until it is known what an image takes.

    Args:
        settings: `batch_size` is not looked at.

    Raises:
        ValueError: not even one image fits, or one alone where images are mixed; a device whose memory is not known, or
            processes that others have started and that could not agree.
    """
    place = pick_device(settings.device)
    processes = count_processes(settings, place).total
    if processes > 1 and (started_by_launcher() is not None or settings.nodes > 1):
        raise ValueError(
            "train.batch_size is auto, and these processes were started one by one: each would find a number of its "
            "own. Find it with `segkit train CONFIG --dry-run train.devices=1`, and give that number."
        )
    if processes > 1 and not is_main_process() and _VARIABLE in os.environ:
        return int(os.environ[_VARIABLE])  # what the process found that started this one
    most = 2 ** (max(1, min(MOST, len(train) // processes)).bit_length() - 1)
    # Workers would read ahead what is never trained on; a step of accumulated batches takes no more than two steps.
    chosen = settings.model_copy(update={"batch_size": 1, "workers": 0, "accumulate": 1})
    with probe(model, loss, train, val, chosen, data_on_device) as module:
        room = _free(place) * _SHARE
        weights = sum(p.numel() * p.element_size() for p in module.model.parameters())
        if place.type == "cuda":
            # DDP keeps gradients a second time; fp16 begins with steps that overflow, and no moments.
            room -= weights if processes > 1 else 0
            room -= 2 * weights if pick_precision(settings.precision, place) == "16-mixed" else 0
            size = largest_by_trial(lambda n: _cuda_peak(module, n, place), most, room)
        else:
            # Weights, gradients and two moments.
            size = largest_by_slope(lambda n: _cpu_peak(module, n, place), most, room / processes - 4 * weights)
    _let_go(place)
    if size == 0:
        raise ValueError(
            f"train.batch_size is auto, and not even one image fits in the memory of {place}, {room / 2**30:.1f} GiB. "
            "Take smaller crops with `data.crop`, a smaller model.encoder, or a device with more memory."
        )
    if size == 1 and settings.mix is not None:
        raise ValueError(
            "train.batch_size is auto, which is one image here, and train.mix takes another image of the batch: leave "
            "`mix` out, or take smaller crops with `data.crop`, a smaller model.encoder, or more images."
        )
    if processes > 1:
        os.environ[_VARIABLE] = str(size)
    return size


def largest_by_trial(peak_of: Callable[[int], int], most: int, room: float) -> int:
    """The largest power of two up to `most` whose peak is at most `room` bytes; 0 if that of 1 is not.

    Args:
        peak_of: bytes that a batch of so many images takes; raises `torch.OutOfMemoryError` where there are none left.
    """
    fits = 0
    for size in _sizes(most):
        try:
            if peak_of(size) > room:
                break
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not is_oom_error(error):  # cuDNN has names of its own
                raise
            break
        fits = size
    # Networks that normalise over the batch refuse a single image, so one is tried last.
    if fits or most == 1:
        return fits
    return largest_by_trial(peak_of, 1, room)


def largest_by_slope(peak_of: Callable[[int], int], most: int, room: float) -> int:
    """The largest power of two up to `most` whose images take at most `room` bytes; 0 if one image does not.

    A batch twice as large raises the peak twice as much. What the process held before hides that of small batches, so
    they grow until it is seen.

    Args:
        peak_of: bytes that the process has held at most, after a batch of so many images.
    """
    if room <= 0:
        return 0
    sizes = _sizes(most)
    peak, rise = peak_of(sizes[0]), 0
    for size in sizes[1:]:
        if 2 * rise > room:  # what the next one would add
            return _largest(size // 2, rise / (size // 4), room)
        before, peak = peak, peak_of(size)
        earlier, rise = rise, peak - before
        # The first rise may be hidden in part; one that is followed by its double was seen whole.
        if rise > 0 and 1.5 * earlier <= rise <= 3 * earlier:
            return _largest(most, rise / (size // 2), room)
    return most


def _largest(most: int, image_bytes: float, room: float) -> int:
    return max((2**k for k in range(most.bit_length()) if 2**k * image_bytes <= room), default=0)


def _sizes(most: int) -> list[int]:
    return [2**k for k in range(1, most.bit_length())] or [1]


def _free(place: torch.device) -> int:
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0] + torch.cuda.memory_reserved(place)
    free = available_memory() if place.type == "cpu" and peak_memory() is not None else None
    if free is None:
        raise ValueError(f"train.batch_size is auto, and the memory of {place} is not known here: give a number.")
    return free


def _cuda_peak(module: Any, size: int, place: torch.device) -> int:
    _let_go(place)
    torch.cuda.reset_peak_memory_stats(place)
    try:
        _train(module, size, place)
    finally:
        _let_go(place)
    return torch.cuda.max_memory_reserved(place)


def _cpu_peak(module: Any, size: int, place: torch.device) -> int:
    _train(module, size, place)
    _let_go(place)
    return peak_memory() or 0


def _train(module: Any, size: int, place: torch.device) -> None:
    """Two steps, as moments and gradients of the first lie there in the second, and a validation batch."""
    module.settings = chosen = module.settings.model_copy(update={"batch_size": size})
    callbacks = [] if chosen.ema is None else [AveragedWeights(module.model.network, chosen.ema)]
    trainer = probe_trainer(chosen, place, 2, limit_train_batches=2, limit_val_batches=1, callbacks=callbacks)
    trainer.fit(module)


def _let_go(place: torch.device) -> None:
    gc.collect()  # Lightning's objects refer to each other
    if place.type == "cuda":
        torch.cuda.empty_cache()
