"""Training as users start it: segkit's `fit` against a bare loop, and against plain SMP and Lightning."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.inputs import class_planes
from benchmarks.losses import segkit_loss, smp_loss
from benchmarks.networks import Work, channels_last
from benchmarks.peers import Absent, peer
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Settings, rounds_of
from segkit import MaskDataset, MaskFormat, open_codec
from segkit.data.loaders import train_loader
from segkit.models.segmenter import Segmenter
from segkit.training.optimizer import build_optimizer, build_schedule
from segkit.training.step import training_loss

# Steps of one sample of the overhead; the first of an epoch waits for the loader and is left out.
_STEPS = 6
# A sample is a whole training of many steps: a few of them say all, as quartiles show.
_MOST_ROUNDS = 3
_LIGHTNING = "SMP + Lightning"
# What `fit` is told wherever it is measured.
QUIET: dict[str, Any] = {"epochs": 1, "progress": False, "tell": lambda line: None}


def overhead(work: Work, settings: Settings) -> Row:
    """Median time from one batch to the next inside `fit`, against a plain loop over the same loader."""
    from segkit import fit

    loss, baseline = segkit_loss(work.classes), "bare loop"
    entries = [Entry(baseline), Entry("segkit fit", goal=Goal(1.02))]
    title = f"toolkit overhead per step, {work}"
    with tempfile.TemporaryDirectory() as folder:
        steps = 3 if settings.small else _STEPS
        data = _written(Path(folder), work, steps)
        model = work.segkit_model(settings.device)
        _loop(model, loss, data, work.n, settings)
        for number in rounds_of(title, settings):
            entries[0].samples.append(1000.0 * _interval_s(_loop(model, loss, data, work.n, settings)))
            clock = make_clock(range(steps), settings)
            options = {**QUIET, "batch_size": work.n, "workers": 0, "device": str(settings.device)}
            fit(model, data, out=Path(folder) / f"run{number}", loss=loss, callbacks=[clock], **options)
            model.to(settings.device).train()
            entries[1].samples.append(1000.0 * _interval_s(clock.done_s))
    return Row("step", title, "ms", entries, baseline).relate()


def against_lightning(work: Work, settings: Settings) -> Row:
    """Time per step of a run of plain SMP + Lightning and of `fit`; all data lie on the device before both begin."""
    settings = fewer_rounds(settings)
    steps = warm_up_steps(settings) + (2 if settings.small else 3 if settings.device.type == "cpu" else 30)
    marks = (warm_up_steps(settings) - 1, steps - 1)
    with tempfile.TemporaryDirectory() as folder:
        data = _written(Path(folder), work, steps)
        data.resize = work.size_hw  # which they have: `fit` compiles for sizes that are sure
        trainings = [
            (_LIGHTNING, lambda: _lightning_training(work, steps, settings)),
            ("segkit fit", lambda: _fit_training(work, data, settings)),
        ]
        if settings.device.type == "cuda":
            compiled = f"{_LIGHTNING}, channels_last, compiled"
            trainings.insert(1, (compiled, lambda: _lightning_training(work, steps, settings, compiled=True)))
            trainings.append(("segkit fit, train.compile", lambda: _fit_training(work, data, settings, compile=True)))
        entries = [Entry(name) for name, _ in trainings]
        runs = _prepared(trainings, entries)
        title = f"whole training, time per step, data on the device, {work}"
        for _ in rounds_of(title, settings):
            for entry in entries:
                if entry.name in runs:
                    clock = make_clock(marks, settings)
                    runs[entry.name](clock)
                    started_s, ended_s = clock.done_s
                    entry.samples.append(1000.0 * (ended_s - started_s) / (marks[1] - marks[0]))
    return Row("step", title, "ms", entries, _LIGHTNING).relate()


def make_clock(batches: Container[int], settings: Settings, at_mark: Callable[[], None] = lambda: None) -> Any:
    """A Lightning callback: `done_s` holds when each of these batches of the only epoch was done.

    Args:
        batches: numbers of batches. The device is waited for at their ends and at no other, as in real training.
        at_mark: called at each of these ends.
    """
    from lightning.pytorch.callbacks import Callback

    class Clock(Callback):
        """Notes when batches are done."""

        def __init__(self) -> None:
            self.done_s: list[float] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx in batches:
                self.done_s.append(_now_s(settings))
                at_mark()

    return Clock()


def warm_up_steps(settings: Settings) -> int:
    """Steps of a training that are left out: the first one allocates, or compiles; the next ones settle on a GPU."""
    return 5 if settings.device.type == "cuda" else 1


def fewer_rounds(settings: Settings) -> Settings:
    """Rounds for samples that are whole trainings."""
    return replace(settings, rounds=min(_MOST_ROUNDS, settings.rounds))


# Trainings: calls that take a callback ---------------------------------------------------------------------


def _prepared(
    trainings: list[tuple[str, Callable[[], Callable[[Any], None]]]], entries: list[Entry]
) -> dict[str, Callable[[Any], None]]:
    runs = {}
    for (name, prepare), entry in zip(trainings, entries, strict=True):
        try:
            runs[name] = prepare()
        except Absent as reason:
            entry.absent = str(reason)
    return runs


def _lightning_training(work: Work, steps: int, settings: Settings, compiled: bool = False) -> Callable[[Any], None]:
    """What a user of SMP and Lightning writes: normalised float32 images and int64 indices come from the loader."""
    L = peer("lightning", "lightning.pytorch")
    loss, network = smp_loss(), work.smp_model(settings.device)
    images, planes = random_batch(work, settings.device)
    ready = (images.float() - 120.0) / 58.0
    if compiled:
        network, ready = channels_last(network), ready.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network
    # Whole batches, so that nothing is left to put together.
    loader = DataLoader([(ready, planes[:, 0].long())] * steps, batch_size=None)

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, indices = batch
            value = loss(forward(images), indices)
            self.log("loss", value.detach())
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    def run(clock: Any) -> None:
        with _quiet_lightning():
            trainer = L.Trainer(
                accelerator="gpu" if settings.device.type == "cuda" else "cpu",
                devices=1,
                precision="bf16-mixed" if settings.device.type == "cuda" else "32-true",
                max_epochs=1,
                callbacks=[clock],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Plain(), loader)

    return run


def _fit_training(work: Work, data: MaskDataset, settings: Settings, compile: bool = False) -> Callable[[Any], None]:
    """`fit` with the data on the device; gradients are not clipped, as Lightning does not clip them."""
    from segkit import fit

    model, loss = work.segkit_model(settings.device), segkit_loss(work.classes)
    options = {**QUIET, "batch_size": work.n, "device": str(settings.device), "data_on_device": True}

    def run(clock: Any) -> None:
        with tempfile.TemporaryDirectory() as out:
            fit(
                model,
                data,
                out=Path(out) / "run",
                loss=loss,
                clip_norm=None,
                compile=compile,
                callbacks=[clock],
                **options,
            )
        model.train()

    return run


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning greets on every start, and advises more workers."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        logger.setLevel(level)


# The bare loop ---------------------------------------------------------------------------------------------


def _loop(model: Segmenter, loss: Any, data: MaskDataset, n: int, settings: Settings) -> list[float]:
    """The training that `fit` does, by hand: when each batch was done."""
    optimizer = build_optimizer(model, 1e-3)
    schedule = build_schedule(optimizer, "cosine", len(data) // n, 0)
    cuda = settings.device.type == "cuda"
    done_s = []
    for batch in train_loader(data, n, workers=0):
        batch = batch.to(settings.device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            value = training_loss(model, loss, batch.images, batch.target)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done_s.append(_now_s(settings))
    return done_s


def _interval_s(done_s: list[float]) -> float:
    return median(after - before for before, after in pairwise(done_s))


def _now_s(settings: Settings) -> float:
    if settings.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# Data ------------------------------------------------------------------------------------------------------


def random_batch(work: Work, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) uint8 noise and (N, 1, H, W) uint8 class indices."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (work.n, 3, *work.size_hw), dtype=torch.uint8, generator=generator)
    return images.to(device), class_planes(work.n, work.classes, work.size_hw).to(device)


def _written(root: Path, work: Work, steps: int) -> MaskDataset:
    """A data set of PNG files, enough for so many steps."""
    generator = torch.Generator().manual_seed(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    planes = class_planes(work.n * steps, work.classes, work.size_hw)
    for number in range(len(planes)):
        noise = torch.randint(0, 256, (*work.size_hw, 3), dtype=torch.uint8, generator=generator)
        cv2.imwrite(str(root / "images" / f"{number}.png"), noise.numpy())
        cv2.imwrite(str(root / "masks" / f"{number}.png"), planes[number, 0].numpy())
    codec = open_codec("index_png", MaskFormat.multiclass(range(work.classes)))
    return MaskDataset(root / "images", root / "masks", codec)
