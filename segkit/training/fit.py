"""Train a model: one function over `lightning.Trainer`."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.data.device_data import device_augment
from segkit.formats.files import write_whole
from segkit.inference.evaluate import as_stored, check_normalize
from segkit.losses.build import build_loss
from segkit.metrics.scores import Scores
from segkit.models.bundle import load_weights
from segkit.models.devices import has_bfloat16, pick_device
from segkit.models.segmenter import FEW, Segmenter
from segkit.training.callbacks import BestBundle, EpochBar, EpochLines, MetricsFile, lower_is_better
from segkit.training.checkpoint import DurableFiles, RunCheckpoint, clear_leftovers
from segkit.training.compiling import CompiledTraining, check_one_size, compile_mode, leave_uncompiled
from segkit.training.environment import describe_environment
from segkit.training.module import MONITORS, Schedule, SegmentationModule
from segkit.training.preemption import AGAIN, Preempted

# Bands change little from image to image; more would only cost reading time.
_STATISTICS_IMAGES = 200

# In a run folder.
CHECKPOINT = Path("checkpoints", "last.ckpt")


@dataclass(frozen=True)
class FitResult:
    """What training left behind.

    Attributes:
        folder: the run folder; `folder / "model"` is the bundle of the best epoch.
        best: the monitored score of that epoch, None without validation images.
        best_epoch: counted from 0.
        epochs: epochs trained in all, resumed ones included.
        scores: validation scores of the last epoch.
    """

    folder: Path
    best: float | None
    best_epoch: int | None
    epochs: int
    scores: Scores | None


def fit(
    model: Segmenter,
    train: MaskDataset,
    val: MaskDataset | None = None,
    *,
    out: str | Path,
    loss: nn.Module | None = None,
    monitor: str = "pooled_iou",
    patience: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    devices: int | str = 1,
    nodes: int = 1,
    clip_norm: float | None = 1.0,
    channels_last: bool = True,
    compile: bool | str = False,
    data_on_device: bool = False,
    validate_every: int = 1,
    checkpoint_every_steps: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
    **schedule: Any,
) -> FitResult:
    """Train `model` on `train`, keep the epoch that scores best on `val`, and leave its weights in `model`.

    Args:
        out: run folder; gets metrics.csv, environment.json, checkpoints/last.ckpt and model/.
        loss: called as loss(logits, target); by default cross entropy plus Dice.
        monitor: one of `MONITORS`, decides which epoch is best.
        patience: stop after so many validations without improvement; None never stops early.
        precision: `auto` is bf16 on CUDA (fp16 on GPUs without it) and float32 elsewhere; else any precision of
            `lightning.Trainer`.
        device: auto, cpu, cuda or mps.
        devices, nodes: how many, as `lightning.Trainer` takes them.
        clip_norm: largest norm of the gradient, None for no limit.
        channels_last: store convolutions channels last, which is faster on GPU and CPU.
        compile: compile the network for training: True, or a mode of `torch.compile` in
            `segkit.training.compiling.MODES`. Training images have to come in one size.
        data_on_device: hold the training images decoded in the memory of the device and augment them there; see
            `segkit.data.device_data.DeviceDataset`.
        validate_every: epochs from one validation to the next.
        checkpoint_every_steps: optimizer steps from one checkpoint to the next; None writes one after each epoch alone.
        resume: go on from checkpoints/last.ckpt of `out`, as if there had been no interruption.
        progress: show a bar; None shows one if stderr is a terminal.
        tell: gets one line per epoch.
        callbacks: further Lightning callbacks.
        schedule: fields of `Schedule`: epochs, batch_size, lr, seed, workers, ...

    Raises:
        ValueError: arguments that cannot work together, or a run folder that cannot be resumed.
        Preempted: SIGTERM came, and the run was saved after the current step; as a SystemExit it ends the process
            with exit code 75 if nobody catches it.
    """
    out, place = Path(out), pick_device(device)
    plan = _check(model, train, val, monitor, schedule)
    mode = compile_mode(compile)
    if mode is not None:
        check_one_size(train)
    if data_on_device:
        device_augment(train)
    model.reading = train.reading.for_new_images()
    if val is not None:
        check_normalize(model, val)
        val = as_stored(val)
    if checkpoint_every_steps is not None and checkpoint_every_steps < 1:
        raise ValueError(f"checkpoint_every_steps is {checkpoint_every_steps}: expected 1 or more, or None.")
    checkpoint = _checkpoint_to_resume(out) if resume else None
    if not resume:
        refuse_used_folder(out)
        fit_pixel_statistics(model, train)
    out.mkdir(parents=True, exist_ok=True)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    loss = build_loss({"cross_entropy": 1, "dice": 1}, model.format) if loss is None else loss
    module = SegmentationModule(model, loss, train, val, plan, shown=monitor, data_on_device=data_on_device)
    best = BestBundle(out / "model", train.codec, monitor if val is not None else None)
    extra = [*callbacks, best, MetricsFile(out / "metrics.csv"), EpochLines(best, tell)]
    # Lightning runs checkpoint callbacks last, so the states of the others are in it.
    files = DurableFiles()
    extra.append(RunCheckpoint(out / CHECKPOINT, files, checkpoint_every_steps, tell))
    if patience is not None and val is not None:
        extra.append(EarlyStopping(monitor, patience=patience, mode="min" if lower_is_better(monitor) else "max"))
    if mode is not None:
        extra.append(CompiledTraining(model.network, mode))
    show = sys.stderr.isatty() if progress is None else progress
    if show:
        extra.append(EpochBar())
    with _quiet_lightning(), _determinism_restored():
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(place.type, place.type),
            devices=devices if place.index is None else [place.index],
            num_nodes=nodes,
            precision=_precision(precision, place),  # type: ignore[arg-type]
            max_epochs=plan.epochs,
            accumulate_grad_batches=plan.accumulate,
            gradient_clip_val=clip_norm,
            check_val_every_n_epoch=validate_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=extra,
            plugins=_plugins(files),
            logger=_loggers(out),
            log_every_n_steps=1,
            enable_progress_bar=show,
            enable_model_summary=False,
            deterministic="warn" if not torch.cuda.is_available() else None,
        )
        if trainer.is_global_zero:
            facts = {**describe_environment(), **_trainer_facts(trainer)}
            write_whole(out / "environment.json", (json.dumps(facts, indent=2) + "\n").encode())
            if data_on_device:
                tell(f"reading {len(train)} training samples into the memory of {place}")
        try:
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException:  # that came before the first step
            raise Preempted from None
        except SystemExit as stop:
            if stop.code == AGAIN:
                raise
            raise KeyboardInterrupt from None  # Lightning ends so after Ctrl-C
        finally:
            leave_uncompiled(model.network)
    # Only the first process wrote the bundle; the others read it when it is whole.
    trainer.strategy.barrier()
    load_weights(model, out / "model")
    model.eval()
    return FitResult(out, best.best, best.best_epoch, trainer.current_epoch, module.scores)


def _check(
    model: Segmenter, train: MaskDataset, val: MaskDataset | None, monitor: str, schedule: dict[str, Any]
) -> Schedule:
    try:
        plan = Schedule(**schedule)
    except TypeError as error:
        raise ValueError(f"fit got an argument it does not know: {error}") from None
    if monitor not in MONITORS:
        raise ValueError(f"monitor is {monitor!r}: expected one of {', '.join(MONITORS)}.")
    for name, data in (("training", train), ("validation", val)):
        if data is not None and not data.format.shares_planes(model.format):
            raise ValueError(
                f"the {name} masks are {data.format.describe()}, the model predicts {model.format.describe()}: "
                "give both one format."
            )
    return plan


def _checkpoint_to_resume(out: Path) -> str:
    checkpoint = out / CHECKPOINT
    if not checkpoint.is_file():
        raise ValueError(f"{out}: nothing to resume, {checkpoint} is not there. Train without resume.")
    clear_leftovers(out)
    return str(checkpoint)


def refuse_used_folder(out: Path) -> None:
    """A run is never written over."""
    if (out / "checkpoints").exists() or (out / "model").exists():
        raise ValueError(f"{out}: holds a run already. Resume it, choose another folder, or delete it.")


def fit_pixel_statistics(model: Segmenter, train: MaskDataset) -> None:
    """See `Segmenter.fit_statistics`; the images are spread over `train`, and read as they are there."""
    model.reading = train.reading.for_new_images()
    model.fit_statistics(lambda: _some_images(train))


def _some_images(data: MaskDataset) -> Iterator[np.ndarray]:
    """A few from everywhere first, which may be all that is needed; then in order, as slices share their volume."""
    chosen = np.unique(np.linspace(0, len(data) - 1, _STATISTICS_IMAGES).astype(int))
    few = chosen[:: -(-len(chosen) // FEW)]
    for index in (*few, *np.setdiff1d(chosen, few)):
        yield data.read(int(index)).image


def _precision(precision: str, place: torch.device) -> str:
    if precision != "auto":
        return precision
    if place.type != "cuda":
        return "32-true"
    return "bf16-mixed" if has_bfloat16() else "16-mixed"


def _plugins(files: DurableFiles) -> list[Any]:
    # Lightning would catch the signals of SLURM, save to a file of its own, requeue the job, and start from that file.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [files, *slurm]


def _loggers(out: Path) -> list[Logger]:
    return [TensorBoardLogger(out, name="tensorboard", version="")]


def _trainer_facts(trainer: L.Trainer) -> dict[str, Any]:
    return {
        "accelerator": type(trainer.accelerator).__name__,
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
    }


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning greets, advises and counts on every start; our own lines say what a user needs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _determinism_restored() -> Iterator[None]:
    """Lightning's `deterministic` sets torch for the rest of the process; here it ends with the run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    # It would write to all new memory before it is used: an aid against mistakes that costs a pass over every tensor.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
