"""Pictures of a run: its curves, and the same few validation images every few epochs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from segkit.data.datasets import MaskDataset
from segkit.data.images import resize_image, resize_planes
from segkit.data.sample import Batch
from segkit.inference.overlay import draw_overlay, side_by_side, to_rgb, write_picture
from segkit.ops.sizes import fit_size
from segkit.training.callbacks import BestBundle, MetricsFile, can_do_without
from segkit.training.curves import Curve, Panel, draw_curves, write_text
from segkit.training.loggers import log_picture

_IMAGES = 4
_SIDE = 320  # pixels of the longer side of one picture
_GAP, _LINE = 8, 26
# Epochs may take less time than their picture.
_EVERY_S = 5.0


class CurvesPicture(Callback):
    """Keeps `path` the curves of all epochs: losses, monitored score with the best epoch, and learning rate.

    Drawn after each epoch, though not again within five seconds, and at the end.
    """

    def __init__(self, path: Path, metrics: MetricsFile, best: BestBundle) -> None:
        self.path, self.metrics, self.best = path, metrics, best
        self._drawn_s: float | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._drawn_s is None or time.monotonic() - self._drawn_s > _EVERY_S:
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.metrics.rows:
            panels = curve_panels(self.metrics.rows, self.best.monitor, self.best.best_epoch)
            with can_do_without(self.path):
                write_picture(self.path, draw_curves(panels, "epoch", title=self.path.parent.name))
            self._drawn_s = time.monotonic()


def curve_panels(rows: list[dict[str, float]], monitor: str | None, best_epoch: int | None) -> list[Panel]:
    """Panels of the rows of `metrics.csv`; epochs count from 1, as they are told."""

    def curve(name: str, column: str) -> Curve:
        there = [row for row in rows if column in row]
        color = ["training", "validation", "decoder and head"].index(name)  # the same in all panels
        return Curve(name, [row["epoch"] + 1 for row in there], [row[column] for row in there], color)

    def mark(column: str) -> tuple[float, float, str] | None:
        for row in rows:
            if row["epoch"] == best_epoch and column in row:
                return row["epoch"] + 1, row[column], f"best {row[column]:.4f} in epoch {int(row['epoch']) + 1}"
        return None

    losses = [curve("training", "train_loss")] + ([curve("validation", "val_loss")] if monitor else [])
    panels = [Panel("loss (no unit)", losses, mark=mark("val_loss") if monitor == "val_loss" else None)]
    if monitor is not None and monitor != "val_loss":
        panels.append(Panel(f"{monitor} (0 to 1)", [curve("validation", monitor)], mark=mark(monitor)))
    return [*panels, Panel("learning rate (at the end of the epoch)", [curve("decoder and head", "lr")])]


class ValidationPictures(Callback):
    """Every few epochs one sheet of the same validation images: image, truth and prediction beside each other.

    The predictions are those that were just scored, so nothing is computed twice and training does not notice. The
    first process draws the images that it scores itself, spread over its share.

    Args:
        folder: gets `epoch_0010.png` and so on; loggers that take pictures get the same.
        data: the validation images.
        every: epochs from one sheet to the next. Where an epoch is not validated, the next validation draws.
        validate_every: epochs from one validation to the next.
    """

    def __init__(self, folder: Path, data: MaskDataset, every: int, validate_every: int = 1) -> None:
        self.folder, self.data, self.every, self.validate_every = folder, data, every, validate_every
        self._rows: dict[str, np.ndarray] = {}
        self._wanted: list[str] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._rows, self._wanted = {}, []
        epoch = trainer.current_epoch + 1
        since = (epoch - 1) // self.validate_every * self.validate_every  # the validation before
        if trainer.is_global_zero and epoch // self.every > since // self.every:
            mine = self.data.stems[:: trainer.world_size]
            self._wanted = [mine[n] for n in np.unique(np.linspace(0, len(mine) - 1, _IMAGES).astype(int))]

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: list[Batch],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for part, pred in zip(batch, outputs["pred"], strict=True):
            for place, stem in enumerate(part.stems):
                if stem in self._wanted:
                    image, truth, guess = (
                        t[place].cpu().numpy().transpose(1, 2, 0) for t in (part.images, part.target, pred)
                    )
                    self._rows[stem] = self._row(stem, image, truth, guess)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._rows:
            return
        epoch, rows = trainer.current_epoch + 1, self._rows
        width = max(row.shape[1] for row in rows.values())
        title = _text_line(f"epoch {epoch}: image, truth, prediction", width, size=17)
        sheet = _stack([title, *(rows[stem] for stem in self._wanted if stem in rows)])
        path = self.folder / f"epoch_{epoch:04d}.png"
        with can_do_without(path):
            write_picture(path, sheet)
        log_picture(trainer.loggers, "validation", sheet, trainer.global_step)
        self._rows = {}

    def _row(self, stem: str, image: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
        size_hw = _shown_size(*image.shape[:2])
        shown = to_rgb(_resized(self.data.reading.without_neighbours(image), size_hw))
        overlays = (draw_overlay(shown, resize_planes(p, size_hw), self.data.format) for p in (truth, pred))
        pictures = side_by_side(shown, *overlays, gap=_GAP)
        return np.concatenate([_text_line(stem, pictures.shape[1]), pictures])


def _shown_size(height: int, width: int) -> tuple[int, int]:
    """Small images grow by a whole number, so that their pixels stay sharp."""
    if max(height, width) > _SIDE:
        return fit_size((height, width), _SIDE)
    times = _SIDE // max(height, width)
    return height * times, width * times


def _resized(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    picked = image[..., : 3 if image.shape[2] >= 3 else 1]
    return resize_planes(picked, size_hw) if size_hw[0] > image.shape[0] else resize_image(picked, size_hw)


def _text_line(text: str, width: int, size: int = 14) -> np.ndarray:
    return write_text(np.full((_LINE, width, 3), 255, np.uint8), text, size)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    white = (255, 255, 255)
    padded: list[Any] = [
        cv2.copyMakeBorder(r, 0, 0, 0, width - r.shape[1], cv2.BORDER_CONSTANT, value=white) for r in rows
    ]
    return np.pad(np.concatenate(padded), ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
