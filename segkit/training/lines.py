"""What a run tells after each epoch: plain lines for a log, rows of a table on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from segkit.metrics.scores import ClassScores, Scores
from segkit.training.callbacks import BestBundle, validated

# With more, rows would not fit beside each other; narrow terminals have room for fewer.
_CLASSES = 8
_CLASS_WIDTH = (6, 12)
_GAP = 2


class EpochLines(Callback):
    """After each epoch its losses, monitored score, best so far, seconds, and the time left.

    Args:
        best: knows what is monitored, and the best of it.
        tell: gets one line per epoch.
        console: a `rich` console of a terminal, which gets a table that grows by a row per epoch instead of lines; with
            the monitored score of each class where they are few and there is room.
    """

    def __init__(self, best: BestBundle, tell: Callable[[str], None] = print, console: Any = None) -> None:
        self.best, self.tell, self.console = best, tell, console
        self._started_s = 0.0
        self._took_s: list[float] = []
        self._columns: list[tuple[str, int]] = []
        self._classes: list[str] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started_s = time.monotonic()  # of an epoch that is resumed
        if self.console is not None and trainer.is_global_zero:
            self._begin_table(trainer, module)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loss = float(module.train_loss.compute())  # type: ignore[union-attr, operator]
        if not trainer.is_global_zero:
            return  # after what all processes compute together
        self._took_s.append(time.monotonic() - self._started_s)
        scores = trainer.callback_metrics if validated(trainer, module) else {}
        if self.console is None:
            self.tell(self._line(trainer, loss, scores))
        else:
            self._add_row(trainer, module, loss, scores)

    def _line(self, trainer: L.Trainer, loss: float, scores: Any) -> str:
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", f"loss {loss:.4f}"]
        monitor = self.best.monitor
        if monitor is not None and scores:
            if monitor != "val_loss":
                parts.append(f"val_loss {float(scores['val_loss']):.4f}")
            parts.append(f"{monitor} {float(scores[monitor]):.4f}")
            if self.best.best is not None and self.best.best_epoch is not None:
                parts.append(f"best {self.best.best:.4f} (epoch {self.best.best_epoch + 1})")
        parts.append(f"{self._took_s[-1]:.1f} s")
        left_s = self._left_s(trainer)
        return "  ".join([*parts, f"{duration_text(left_s)} left"] if left_s else parts)

    def _left_s(self, trainer: L.Trainer) -> float:
        """Epochs that are left, by the mean of those that this process trained."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        return 0.0 if trainer.should_stop else epochs * sum(self._took_s) / len(self._took_s)

    def _begin_table(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        monitor = self.best.monitor
        epochs = len(f"{trainer.max_epochs}/{trainer.max_epochs}")
        self._columns = [("epoch", max(5, epochs)), ("train loss", 10)]
        if monitor is not None:
            self._columns.append(("val loss", 8))
            if monitor != "val_loss":
                self._columns += [(monitor, len(monitor)), ("", 1)]
            else:
                self._columns.append(("", 1))
            self._classes = self._classes_with_room(module)
        low, high = _CLASS_WIDTH
        self._columns += [(name[:high], min(high, max(low, len(name)))) for name in self._classes]
        self._columns += [("lr", 8), ("time", 7), ("left", 7)]
        self._print([(title, "bold") for title, _ in self._columns])
        self._print([("─" * width, "dim") for _, width in self._columns])

    def _classes_with_room(self, module: L.LightningModule) -> list[str]:
        names: list[str] = list(module.model.format.names)  # type: ignore[union-attr, arg-type]
        if not 1 < len(names) <= _CLASSES or self.best.monitor == "val_loss":
            return []
        taken = sum(width + _GAP for _, width in self._columns) + 3 * (8 + _GAP)
        needed = sum(min(_CLASS_WIDTH[1], max(_CLASS_WIDTH[0], len(name))) + _GAP for name in names)
        return names if taken + needed <= self.console.width else []

    def _add_row(self, trainer: L.Trainer, module: L.LightningModule, loss: float, scores: Any) -> None:
        monitor = self.best.monitor
        is_best = bool(scores) and self.best.best_epoch == trainer.current_epoch
        shade = "bold green" if is_best else ""
        cells = [(f"{trainer.current_epoch + 1}/{trainer.max_epochs}", ""), (f"{loss:.4f}", "")]
        if monitor is not None:
            cells.append((f"{float(scores['val_loss']):.4f}" if scores else "", shade if monitor == "val_loss" else ""))
            if monitor != "val_loss":
                cells.append((f"{float(scores[monitor]):.4f}" if scores else "", shade))
            cells.append(("★" if is_best else "", shade))
            per_class = _monitored(module.scores, monitor).per_class if scores and self._classes else {}  # type: ignore[arg-type]
            for name in self._classes:
                score = per_class.get(name)
                cells.append(("" if not scores else "-" if score is None else f"{score:.4f}", "dim"))
        lr = trainer.optimizers[0].param_groups[-1]["lr"]
        left_s = self._left_s(trainer)
        cells += [(f"{lr:.2e}", "dim"), (duration_text(self._took_s[-1]), "")]
        self._print([*cells, (duration_text(left_s) if left_s else "", "dim")])

    def _print(self, cells: list[tuple[str, str]]) -> None:
        from rich.text import Text

        row = Text(no_wrap=True, overflow="ellipsis")
        for (text, style), (_, width) in zip(cells, self._columns, strict=True):
            row.append(text.rjust(width), style).append(" " * _GAP)
        self.console.print(row, highlight=False)


def duration_text(seconds: float) -> str:
    """`4.2 s`, `3:07`, `1:02:45` or `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _monitored(scores: Scores, monitor: str) -> ClassScores:
    """What a monitor such as `per_image_iou` is the mean of."""
    average, _, name = monitor.rpartition("_")
    return getattr(scores, average)(name)
