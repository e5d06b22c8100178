"""What is written and told while a model trains."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.models.bundle import save_bundle
from segkit.training.averaging import AveragedWeights
from segkit.training.settings import MONITORS
from segkit.training.sharding import whole_state

log = logging.getLogger("segkit")


@contextmanager
def can_do_without(path: Path) -> Iterator[None]:
    """What cannot be written to `path`, as on a full disk, is told, and training goes on without it."""
    try:
        yield
    except OSError as error:
        log.warning("%s was not written (%s). Training goes on.", path, error.strerror or error)


def lower_is_better(monitor: str) -> bool:
    """True for losses, False for scores."""
    return monitor.endswith("loss")


class BestBundle(Callback):
    """Keep `folder` the bundle of the best validation score so far; without validation, of the last epoch.

    Args:
        averaged: holds the weights to save; None saves those of the model.
    """

    def __init__(
        self, folder: Path, codec: Codec | None, monitor: str | None, averaged: AveragedWeights | None = None
    ) -> None:
        self.folder = folder
        self.averaged = averaged
        self.codec = codec
        self.monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.monitor is None:
            self._save(trainer, module, None)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor is None:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if math.isnan(value) or (self.best is not None and not self._improves(value)):
            return
        self._save(trainer, module, value)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.best_epoch is None:
            if trainer.is_global_zero:
                log.warning("%s was never a number: the weights of the last epoch are kept.", self.monitor)
            self._save(trainer, module, None)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "monitor": self.monitor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        before = state.get("monitor", self.monitor)  # older checkpoints do not say
        if state["best"] is not None and self.monitor is not None and self.monitor != before:
            raise ValueError(
                f"monitor is {self.monitor}, but the best epoch of the run that is to be resumed was chosen by "
                f"{before}: the two cannot be compared: resume with that, or start a new run."
            )
        self.best, self.best_epoch = state["best"], state["best_epoch"]

    def _improves(self, value: float) -> bool:
        assert self.monitor is not None
        return value < self.best if lower_is_better(self.monitor) else value > self.best  # type: ignore[operator]

    def _save(self, trainer: L.Trainer, module: L.LightningModule, value: float | None) -> None:
        self.best, self.best_epoch = value, trainer.current_epoch
        notes = {"trained": {"epoch": trainer.current_epoch, "monitor": self.monitor, "score": value}}
        model: Any = module.model
        with nullcontext() if self.averaged is None else self.averaged.applied():
            state = whole_state(model.network)  # by all processes
            if trainer.is_global_zero:
                save_bundle(model, self.folder, self.codec, state=state, **notes)


class MetricsFile(Callback):
    """`metrics.csv`: one row per epoch, without clock times, so that equal runs write equal files.

    The rows travel in the checkpoint: a resumed run starts from those of its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    # The states of a checkpoint are here by now. A run whose epochs are all trained has no `on_train_start`.
    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            if self.rows:
                self._write()  # without those that came after the checkpoint
            else:
                self.path.unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        metrics = trainer.callback_metrics
        row["train_loss"] = float(module.train_loss.compute())  # type: ignore[union-attr, operator]
        if validated(trainer, module):
            row.update({name: float(metrics[name]) for name in MONITORS})
        row["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.9g}" for k, v in row.items()} for row in self.rows)
        with can_do_without(self.path):  # the rows are in the checkpoint too, and all are written again
            write_whole(self.path, text.getvalue().encode())


def validated(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """False in an epoch without validation, in which Lightning still holds the scores of an earlier one."""
    return module.scored_epoch == trainer.current_epoch  # type: ignore[return-value]


class EpochBar(RichProgressBar):
    """A bar for each epoch with the loss and the monitored score; it leaves no trace behind."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # Lightning counts from 0
