"""Short trainings that leave nothing behind: how they end when they are ended."""

from __future__ import annotations

import os
import signal

import pytest
from lightning.pytorch.callbacks import Callback

from segkit.losses.build import build_loss
from segkit.models.builder import build_model
from segkit.models.devices import pick_device
from segkit.training.preemption import Preempted
from segkit.training.probing import probe, probe_trainer
from segkit.training.settings import train_settings
from tests.scenes import FORMATS, write_set


class Sender(Callback):
    """Sends a signal in the second batch."""

    def __init__(self, number):
        self.number, self.batches = number, 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches += 1
        if self.batches == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_end_a_probe_as_they_end_a_run(tmp_path, number, ends):
    train = write_set(tmp_path, FORMATS["binary"], 4)
    model = build_model(
        "unet", "tu-test_resnet", FORMATS["binary"], weights=None, in_channels=3, decoder_channels=[16, 8, 8, 8, 8]
    )
    settings = train_settings(batch_size=2, workers=0, device="cpu")
    loss = build_loss({"dice": 1}, model.format)
    before = signal.getsignal(number)
    sender = Sender(number)

    def short_training():
        with probe(model, loss, train, None, settings) as module:
            probe_trainer(settings, pick_device("cpu"), 50, limit_val_batches=0, callbacks=[sender]).fit(module)

    with pytest.raises(ends):
        short_training()
    assert 1 < sender.batches < 4
    assert signal.getsignal(number) == before
