"""An exponential moving average of the weights, which is what a run validates and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn


class AveragedWeights(Callback):
    """Averages the weights of `network` after each optimizer step (Polyak & Juditsky 1992), and validates the average.

    average ← d · average + (1 - d) · weights with d = min(decay, (1 + n) / (10 + n)) after n steps, as TensorFlow's
    ExponentialMovingAverage has it: a short run is not held back by the weights that it began with. The running
    statistics of BatchNorm are averaged alike. Averages of weights in half precision, whose digits would not
    hold a share of 1 - d, are float32.

    Lightning's `EMAWeightAveraging` (2.6) puts the plain weights back before the best epoch is saved, saves the average
    in their place in a checkpoint written during validation, has no warm-up, copies the data set along with the
    module, and reads a counter back from the GPU at each step.

    Args:
        decay: d in [0, 1), such as 0.999: an average over the last 1 / (1 - d) steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self._average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  # those of the network itself, in place
        self._kept: dict[str, Tensor] | None = None  # their values while the average stands in their place
        self._updates = 0
        self._step = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has its averaged weights inside. May be nested."""
        if self._kept is not None:
            yield
            return
        self._apply()
        try:
            yield
        finally:
            self._restore()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._weights = {k: v for k, v in self.network.state_dict().items() if v.is_floating_point()}
        began = self._average or self._weights  # the first are those of a checkpoint
        self._average = {k: began[k].to(v.device, _precise(v), copy=True) for k, v in self._weights.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients wait for more batches
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        weights = [value.to(_precise(value)) for value in self._weights.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1.0 - decay)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._apply()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restore()

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._kept is not None:  # SIGTERM came in a validation
            of_network = {id(value): name for name, value in module.named_modules()}[id(self.network)]
            checkpoint["state_dict"].update({f"{of_network}.{name}": value for name, value in self._kept.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average, self._updates = state["average"], state["updates"]

    @torch.no_grad()
    def _apply(self) -> None:
        self._kept = {name: value.clone() for name, value in self._weights.items()}
        for name, value in self._weights.items():
            value.copy_(self._average[name])

    @torch.no_grad()
    def _restore(self) -> None:
        assert self._kept is not None
        for name, value in self._weights.items():
            value.copy_(self._kept[name])
        self._kept = None


def _precise(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
