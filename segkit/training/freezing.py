"""An encoder that is left as it is for the first epochs, while the decoder learns to use it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from segkit.models.encoder_stages import encoder_of
from segkit.models.segmenter import Segmenter


class FrozenEncoder(Callback):
    """Trains the encoder of `model` from epoch `epochs` on; before, no number of it changes.

    A decoder that starts at random would send a pretrained encoder gradients that mean nothing (Howard & Ruder 2018).
    Frozen weights get no gradient at all, rather than a rate of 0: autograd then does not go back into the encoder,
    and the optimizer passes them by, with its decay and its moments. BatchNorm uses the statistics that it has.

    Args:
        epochs: counted from the beginning of the run, also where it is resumed.

    Raises:
        ValueError: a network without an encoder.
    """

    def __init__(self, model: Segmenter, epochs: int) -> None:
        encoder = encoder_of(model)
        if encoder is None:
            raise ValueError(
                f"{model.recipe.architecture} has no part `encoder` that could be frozen: "
                "leave `freeze_encoder_epochs` out, or give your network's backbone that name."
            )
        self.epochs = epochs
        # What is frozen for good stays so.
        self._weights = [p for p in encoder.parameters() if p.requires_grad]
        self._norms = [m for m in encoder.modules() if m.training and _has_statistics(m)]

    # All processes of DDP have made their buckets of gradients by now, for frozen weights too.
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._set(frozen=trainer.current_epoch < self.epochs)  # a run resumed inside an epoch does not start it

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._set(frozen=trainer.current_epoch < self.epochs)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._set(frozen=False)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._set(frozen=False)

    def _set(self, frozen: bool) -> None:
        for weight in self._weights:
            weight.requires_grad_(not frozen)
        for norm in self._norms:
            norm.training = not frozen


def _has_statistics(module: Any) -> bool:
    return isinstance(module, nn.Module) and getattr(module, "running_mean", None) is not None
