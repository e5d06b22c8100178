"""How Lightning is told where and in what precision; made quiet, and its global switches put back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segkit.models.devices import has_bfloat16
from segkit.processes import is_main_process
from segkit.training.checkpoint import DurableFiles
from segkit.training.distributed import Processes, environments
from segkit.training.preemption import AGAIN, Preempted
from segkit.training.settings import TrainSettings

# Kind of device -> what Lightning calls it, where the two differ.
ACCELERATORS = {"cuda": "gpu"}


def pick_precision(precision: str, place: torch.device) -> str:
    """The precision of `lightning.Trainer` for that of `TrainSettings`."""
    if precision != "auto":
        return precision
    if place.type != "cuda":
        return "32-true"
    return "bf16-mixed" if has_bfloat16() else "16-mixed"


def build_trainer(
    settings: TrainSettings,
    processes: Processes,
    strategy: Strategy | str,
    *,
    callbacks: list[Callback],
    files: DurableFiles,
    loggers: list[Logger],
    show: bool,
) -> L.Trainer:
    """The trainer of one run.

    Args:
        processes, strategy: see `segkit.training.distributed`.
        files: writes checkpoints.
        show: whether a bar is drawn.
    """
    return L.Trainer(
        **trainer_options(settings, processes.place),
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=strategy,
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=callbacks,
        plugins=[files, *environments()],
        logger=loggers,
        log_every_n_steps=1,
        enable_progress_bar=show,
    )


def trainer_options(settings: TrainSettings, place: torch.device) -> dict[str, Any]:
    """What every trainer is told, of a run or of a trial of a few steps, so that their steps are the same."""
    return {
        "accelerator": ACCELERATORS.get(place.type, place.type),
        "precision": pick_precision(settings.precision, place),
        "accumulate_grad_batches": settings.accumulate,
        "gradient_clip_val": settings.clip_norm,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "deterministic": "warn" if not torch.cuda.is_available() else None,
    }


def trainer_facts(trainer: L.Trainer) -> dict[str, Any]:
    """What `environment.json` says of the trainer."""
    return {
        "accelerator": type(trainer.accelerator).__name__,
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
    }


@contextmanager
def stops_translated() -> Iterator[None]:
    """What Lightning makes of signals becomes `Preempted` and KeyboardInterrupt."""
    try:
        yield
    except SIGTERMException:  # that came before the first step
        raise Preempted from None
    except SystemExit as stop:
        if stop.code == AGAIN:
            raise
        raise KeyboardInterrupt from None  # Lightning ends so after Ctrl-C


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning greets, advises and counts on every start; our own lines say what a user needs.

    Of several processes the first alone warns.
    """
    names = ["lightning.pytorch", "lightning.fabric", "lightning", *([] if is_main_process() else ["segkit"])]
    loggers = [logging.getLogger(name) for name in names]
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
def determinism_restored() -> Iterator[None]:
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
