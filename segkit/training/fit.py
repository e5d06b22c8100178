"""Train a model: one function over `lightning.Trainer`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.data.device_data import device_augment
from segkit.formats.files import write_whole
from segkit.inference.evaluate import as_stored, check_normalize
from segkit.inference.golden import GOLDEN, keep_golden
from segkit.inspection.before_training import warn_of_shared_files
from segkit.losses.build import build_loss
from segkit.metrics.scores import Scores
from segkit.models.bundle import load_weights
from segkit.models.devices import pick_device
from segkit.models.encoder_stages import encoder_stages
from segkit.models.segmenter import FEW, Segmenter
from segkit.processes import is_main_process
from segkit.training.batch_size import fit_batch_size
from segkit.training.callbacks import can_do_without
from segkit.training.checkpoint import clear_leftovers
from segkit.training.class_balance import focus_on_rare
from segkit.training.compiling import check_one_size, compile_mode, leave_uncompiled
from segkit.training.distributed import count_processes, model_to_train, pick_strategy
from segkit.training.engine import (
    build_trainer,
    determinism_restored,
    quiet_lightning,
    stops_translated,
    trainer_facts,
)
from segkit.training.environment import describe_environment
from segkit.training.head_bias import set_prior_bias
from segkit.training.launching import others_may_end
from segkit.training.loggers import check_loggers, open_loggers
from segkit.training.module import SegmentationModule
from segkit.training.named_optimizers import check_optimizer
from segkit.training.run_callbacks import CHECKPOINT, run_callbacks
from segkit.training.run_lock import only_process_in
from segkit.training.settings import TrainSettings, train_settings

# Bands change little from image to image; more would only cost reading time.
_STATISTICS_IMAGES = 200


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
    data_on_device: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
    choices: Mapping[str, Any] | None = None,
    **settings: Any,
) -> FitResult:
    """Train `model` on `train`, keep the epoch that scores best on `val`, and leave its weights in `model`.

    Args:
        out: run folder; gets metrics.csv, curves.png, environment.json, checkpoints/last.ckpt and model/.
        loss: called as loss(logits, target); by default cross entropy plus Dice.
        data_on_device: hold the training images decoded in the memory of the device and augment them there; see
            `segkit.data.device_data.DeviceDataset`.
        resume: go on from checkpoints/last.ckpt of `out`, as if there had been no interruption.
        progress: show a bar; None shows one if stderr is a terminal.
        tell: gets one line per epoch; while a bar is shown, `print` stands for a table.
        callbacks: further Lightning callbacks.
        choices: what loggers are told that was chosen, such as a whole config; None tells the settings.
        settings: fields of `TrainSettings`: epochs, batch_size, lr, seed, monitor, devices, workers, ...

    Raises:
        ValueError: arguments that cannot work together, or a run folder that cannot be resumed.
        Preempted: SIGTERM came, and the run was saved after the current step; as a SystemExit it ends the process
            with exit code 75 if nobody catches it.
    """
    chosen = train_settings(**settings)
    out, place = Path(out), pick_device(chosen.device)
    _check(model, train, val, chosen, data_on_device)
    train = focus_on_rare(train)
    val = None if val is None else as_stored(val)
    processes = count_processes(chosen, place)
    strategy = pick_strategy(chosen, processes, model)
    model.reading = train.reading.for_new_images()
    checkpoint = _checkpoint_to_resume(out) if resume else None
    if not resume:
        refuse_used_folder(out)
        fit_pixel_statistics(model, train)
        if chosen.prior_bias:
            set_prior_bias(model, train)
    loss = build_loss({"cross_entropy": 1, "dice": 1}, model.format) if loss is None else loss
    if chosen.batch_size == "auto":
        if resume:
            raise ValueError(
                "batch_size is auto: give the number that the run had, as another trains to other weights."
            )
        size = fit_batch_size(model, train, val, loss=loss, settings=chosen, data_on_device=data_on_device)
        tell(f"batch size: {size}")
        chosen = chosen.model_copy(update={"batch_size": size})
    if chosen.channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()  # one that was loaded to predict normalises with the statistics it has, and would not learn them
    trained = model_to_train(model, chosen, processes)
    if chosen.layer_decay is not None:
        encoder_stages(trained)  # known now, not once the run has begun
    show = sys.stderr.isatty() if progress is None else progress
    beside = run_callbacks(
        trained,
        chosen,
        out,
        train.codec,
        val,
        given=callbacks,
        show=show,
        tell=tell,
        choices=choices,
        resumes=resume,
    )
    module = SegmentationModule(trained, loss, train, val, chosen, data_on_device=data_on_device)
    logging = open_loggers(chosen.loggers, out, checkpoint)
    with only_process_in(out), quiet_lightning(), determinism_restored(), others_may_end(), logging as loggers:
        _begin(out, resume)
        trainer = build_trainer(
            chosen, processes, strategy, callbacks=beside.in_order, files=beside.files, loggers=loggers, show=show
        )
        if trainer.is_global_zero:
            facts = {**describe_environment(), **trainer_facts(trainer)}
            write_whole(out / "environment.json", (json.dumps(facts, indent=2) + "\n").encode())
            if data_on_device:
                tell(f"reading {len(train)} training samples into the memory of {place}")
        try:
            with stops_translated():
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        finally:
            leave_uncompiled(trained.network)
            if module.auxiliary is not None:
                module.auxiliary.release()
        # Only the first process wrote the bundle; the others read it when it is whole.
        trainer.strategy.barrier()
    load_weights(model, out / "model")
    model.statistics = trained.statistics
    model.eval()
    if chosen.golden_images and is_main_process():
        with can_do_without(out / "model" / GOLDEN):
            keep_golden(model, as_stored(train) if val is None else val, out / "model", chosen.golden_images)
    return FitResult(out, beside.best.best, beside.best.best_epoch, trainer.current_epoch, module.scores)


def _check(
    model: Segmenter, train: MaskDataset, val: MaskDataset | None, settings: TrainSettings, data_on_device: bool
) -> None:
    """Raise what is known to be wrong before anything is written."""
    check_loggers(settings.loggers)
    _check_formats(model, train, val)
    check_optimizer(settings.optimizer)
    if compile_mode(settings.compile) is not None:
        check_one_size(train)
    if data_on_device:
        device_augment(train)
    if val is not None:
        check_normalize(model, val)
        warn_of_shared_files(train, val)


def _check_formats(model: Segmenter, train: MaskDataset, val: MaskDataset | None) -> None:
    for name, data in (("training", train), ("validation", val)):
        if data is not None and not data.format.shares_planes(model.format):
            raise ValueError(
                f"the {name} masks are {data.format.describe()}, the model predicts {model.format.describe()}: "
                "give both one format."
            )


def _checkpoint_to_resume(out: Path) -> str:
    checkpoint = out / CHECKPOINT
    if not checkpoint.is_file():
        raise ValueError(f"{out}: nothing to resume, {checkpoint} is not there. Train without resume.")
    return str(checkpoint)


def _begin(out: Path, resume: bool) -> None:
    """Look once more, now that no other process can come between."""
    if not resume:
        refuse_used_folder(out)
    elif is_main_process():
        clear_leftovers(out)


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
