"""The learning-rate range test: a short training whose rate rises from almost nothing until the loss explodes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.losses.build import build_loss
from segkit.models.devices import pick_device
from segkit.models.segmenter import Segmenter
from segkit.processes import started_by_launcher
from segkit.training.class_balance import focus_on_rare
from segkit.training.curves import Curve, Panel, draw_curves
from segkit.training.distributed import count_processes
from segkit.training.fit import fit_pixel_statistics
from segkit.training.head_bias import set_prior_bias
from segkit.training.probing import probe, probe_trainer
from segkit.training.settings import train_settings

_LOW, _HIGH, _STEPS = 1e-6, 10.0, 100
# Rates over which losses are averaged: two thirds of a decade. The loss of one batch says little.
_WINDOW = 9
# A mean loss that is so many times the first one above the lowest will not come back.
_EXPLODED = 3.0


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw.

    Attributes:
        rates: of each step, of decoder and head; the encoder has its share of it, as in training.
        losses: of the batches of each step, before it; the last one may be no finite number.
    """

    rates: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        """Losses averaged over neighbouring steps."""
        losses = np.array([v if math.isfinite(v) else math.nan for v in self.losses])
        return [float(v) for v in _smoothed(losses)]

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls fastest; None if it never falls."""
        smoothed = np.asarray(self.smoothed)
        lowest = 0 if np.isnan(smoothed).all() else int(np.nanargmin(smoothed))
        if lowest == 0:
            return None
        return self.rates[int(np.nanargmin(np.gradient(smoothed[: lowest + 1])))]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a loss that is no finite number is null."""
        losses, smoothed = ([v if math.isfinite(v) else None for v in row] for row in (self.losses, self.smoothed))
        return {"suggestion": self.suggestion, "rates": self.rates, "losses": losses, "smoothed": smoothed}

    def draw(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB picture: loss over rate."""
        mark = None
        if (best := self.suggestion) is not None:
            mark = best, self.smoothed[self.rates.index(best)], f"steepest at {best:.2g}"
        # Losses that explode would leave no height for what they were before.
        begun = [v for v in self.losses[: max(1, len(self.losses) // 5)] if math.isfinite(v)]
        ceiling = 1.5 * max(map(abs, begun), default=1.0)
        each, mean = ([v if v <= ceiling else math.nan for v in row] for row in (self.losses, self.smoothed))
        curves = [Curve("smoothed", self.rates, mean), Curve("each step", self.rates, each)]
        return draw_curves([Panel("loss (no unit)", curves, mark=mark)], "learning rate", log_x=True)


def find_lr(
    model: Segmenter,
    train: MaskDataset,
    *,
    loss: nn.Module | None = None,
    data_on_device: bool = False,
    **settings: Any,
) -> RangeTest:
    """Range test of Smith (2017, "Cyclical learning rates for training neural networks").

    A copy of `model` trains for up to 100 steps, as `fit` would, at rates from 1e-6 to 10 with equal factors between
    them, until its loss explodes. Neither `model` nor any file changes. That the loss falls fastest at a good peak rate
    is a rule of thumb of fastai (Gugger 2018): a start, to be compared with a third and with three times as much.

    Args:
        loss, data_on_device, settings: those of `segkit.training.fit.fit`. In several processes a step sees the
            batches of all; here one process goes through as many.

    Raises:
        ValueError: settings that are not known, or processes that torchrun or srun has started.
    """
    chosen = train_settings(**settings)
    if chosen.batch_size == "auto":
        raise ValueError("batch_size is auto: give a number, as a good rate depends on it.")
    place = pick_device(chosen.device)
    if started_by_launcher() is not None:
        raise ValueError("the learning-rate finder runs in one process: leave torchrun or srun away.")
    accumulate = chosen.accumulate * count_processes(chosen, place).total
    # Others would change the rate that the sweep sets, or end before it.
    chosen = chosen.model_copy(update={"schedule": "constant", "accumulate": accumulate})
    model = copy.deepcopy(model)
    train = focus_on_rare(train)
    fit_pixel_statistics(model, train)
    if chosen.prior_bias:
        set_prior_bias(model, train)
    loss = build_loss({"cross_entropy": 1, "dice": 1}, model.format) if loss is None else loss
    sweep = _Sweep(chosen.lr)
    with probe(model, loss, train, None, chosen, data_on_device) as module:
        probe_trainer(chosen, place, _STEPS, limit_val_batches=0, callbacks=[sweep]).fit(module)
    return RangeTest(sweep.rates, sweep.losses)


class _Sweep(Callback):
    """Sets the rate of each step and keeps its loss."""

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._step, self._batches = -1, [0.0]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients wait for more batches
        self._step, self._batches = trainer.global_step, []
        rate = _LOW * (_HIGH / _LOW) ** (self._step / (_STEPS - 1))
        self.rates.append(rate)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * rate / self.peak

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._batches.append(float(trainer.callback_metrics["loss"]))
        if trainer.global_step == self._step:
            return
        self.losses.append(sum(self._batches) / len(self._batches))
        recent = self.losses[-_WINDOW:]
        height = sum(recent) / len(recent) - min(self.losses)
        if not math.isfinite(self.losses[-1]) or height > _EXPLODED * abs(self.losses[0]):
            trainer.should_stop = True


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """Mean over the window around each; shorter, on both sides alike, at the ends."""
    reach = [min(_WINDOW // 2, i, len(losses) - 1 - i) for i in range(len(losses))]
    return np.array([losses[i - r : i + r + 1].mean() for i, r in enumerate(reach)])
