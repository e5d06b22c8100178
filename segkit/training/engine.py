"""How Lightning is told where and in what precision; made quiet, and its global switches put back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segkit.models.devices import has_bfloat16
from segkit.processes import is_main_process

# Kind of device -> what Lightning calls it, where the two differ.
ACCELERATORS = {"cuda": "gpu"}


def pick_precision(precision: str, place: torch.device) -> str:
    """The precision of `lightning.Trainer` for that of `TrainSettings`."""
    if precision != "auto":
        return precision
    if place.type != "cuda":
        return "32-true"
    return "bf16-mixed" if has_bfloat16() else "16-mixed"


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
