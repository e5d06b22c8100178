"""Which is slower, the loader or the training step: images/s of each alone, of both together, and how busy the GPU is.

Scenes are those of the command `loader`, with the workers that `fit` takes by default, each part by itself first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.data import write_scenes
from benchmarks.gpu_use import GpuUse
from benchmarks.losses import segkit_loss
from benchmarks.networks import Work, works
from benchmarks.peers import Absent
from benchmarks.rows import Entry, Row
from benchmarks.steps import segkit_step
from benchmarks.timing import Contender, Run, Settings, rounds_of, time_row
from benchmarks.trainers import QUIET, fewer_rounds, make_clock, warm_up_steps
from segkit import MaskDataset, build_augment
from segkit.data.device_data import DeviceDataset, device_train_loader
from segkit.data.loaders import default_workers, train_loader
from segkit.data.prefetch import DeviceLoader

_PRESET = "fast_street"
# Scenes that differ; more samples are the same files under other names.
_DISTINCT = 16
_STEP = "training step, data ready"
_FILES, _CACHE, _DEVICE = "from files", "from the decoded cache", "data on the device"


def pipeline(settings: Settings) -> list[Row]:
    """images/s of the loader (files, decoded cache, device) beside the training step, and GPU utilisation."""
    settings = fewer_rounds(replace(settings, rounds=1) if settings.small else settings)
    steps = 3 if settings.small else 100 if settings.device.type == "cuda" else 4
    workers = 0 if settings.small else default_workers()
    work = works(settings)[0]
    with tempfile.TemporaryDirectory() as folder:
        data = _scenes(Path(folder), work.n * steps, (48, 80) if settings.small else (512, 1024))
        data.augment = build_augment(_PRESET, data.format, crop=work.size_hw)
        work = replace(work, classes=data.format.num_classes)
        sources = {_FILES: data, _CACHE: data.cached("disk", folder=Path(folder) / "cache"), _DEVICE: data}
        alone = _alone(work, sources, steps, workers, settings)
        return [alone, *_together(work, sources, steps, workers, Path(folder), settings)]


def _scenes(root: Path, number: int, size_hw: tuple[int, int]) -> MaskDataset:
    data = write_scenes(root, min(number, _DISTINCT), size_hw)
    for index in range(len(data), number):
        stem = data.stems[index % _DISTINCT]
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            os.link(root / part / f"{stem}.{suffix}", root / part / f"{index:03d}.{suffix}")
    return MaskDataset(root / "images", root / "masks", data.codec)


# Each part alone -------------------------------------------------------------------------------------------


def _alone(work: Work, sources: dict[str, MaskDataset], steps: int, workers: int, settings: Settings) -> Row:
    """A loader above 1.00 is faster than the step, which is then the bottleneck."""

    def stepping() -> Run:
        step = segkit_step(work, settings)
        return lambda: [step() for _ in range(steps)]

    def reading(source: str) -> Run:
        if source == _DEVICE:
            loader: Any = device_train_loader(DeviceDataset(sources[source], settings.device), work.n)
        else:
            loader = DeviceLoader(train_loader(sources[source], work.n, workers=workers), settings.device)
        epochs = count()

        def run() -> None:
            loader.sampler.set_epoch(next(epochs))
            for _ in loader:
                pass

        return run

    contenders = [Contender(_STEP, stepping)]
    for source in sources:
        contenders.append(Contender(f"loader, {source}", lambda source=source: reading(source)))
    title = f"loader beside training step, {work}, {workers} workers, {_PRESET}"
    return time_row("pipeline", title, _STEP, contenders, settings, images=work.n * steps)


# Together --------------------------------------------------------------------------------------------------


def _together(
    work: Work, sources: dict[str, MaskDataset], steps: int, workers: int, folder: Path, settings: Settings
) -> list[Row]:
    """images/s inside `fit`, and the GPU's utilisation meanwhile."""
    title = f"whole training, {work}, {workers} workers, {_PRESET}"
    speeds, shares = ([Entry(f"segkit fit, {source}") for source in sources] for _ in range(2))
    use: GpuUse | None = None
    try:
        use = GpuUse(settings.device)
    except Absent as reason:
        for entry in shares:
            entry.absent = str(reason)
    train = _trainer(work, steps, workers, settings)
    for number in rounds_of(title, settings):
        for (source, data), speed, share in zip(sources.items(), speeds, shares, strict=True):
            images_per_s, busy = train(data, source == _DEVICE, folder / f"{number} {source}", use)
            speed.samples.append(images_per_s)
            if busy is not None:
                share.samples.append(busy)
    return [
        Row("pipeline", title, "images/s", speeds, f"segkit fit, {_DEVICE}").relate(),
        Row("pipeline", f"GPU utilisation, {title}", "of the time", shares).relate(),
    ]


def _trainer(work: Work, steps: int, workers: int, settings: Settings) -> Callable[..., tuple[float, float | None]]:
    """A training of one epoch: its images/s after the warm-up, and the share of the time in which the GPU computed."""
    from segkit import fit

    model, loss = work.segkit_model(settings.device), segkit_loss(work.classes)
    first, last = warm_up_steps(settings) - 1, steps - 1

    def train(data: MaskDataset, on_device: bool, out: Path, use: GpuUse | None) -> tuple[float, float | None]:
        busy: list[float] = []

        def at_mark() -> None:
            if use is not None:
                # The clock has noted the time: at the first mark once, at the last twice.
                use.start() if len(clock.done_s) == 1 else busy.append(use.stop())

        clock = make_clock((first, last), settings, at_mark)
        options = {**QUIET, "batch_size": work.n, "workers": workers, "device": str(settings.device)}
        fit(model, data, out=out, loss=loss, data_on_device=on_device, callbacks=[clock], **options)
        model.train()
        started_s, ended_s = clock.done_s
        return work.n * (last - first) / (ended_s - started_s), busy[0] if busy else None

    return train
