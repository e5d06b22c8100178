from __future__ import annotations

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from segkit.losses.build import build_loss
from segkit.models.bundle import load_model
from segkit.training.nonfinite import FiniteLoss
from tests.scenes import FORMATS
from tests.training.test_fit import run

FORMAT = FORMATS["exclusive"]


class Poisoned(torch.nn.Module):
    """A loss with the terms of another, of which Dice is `value` in call number `bad`, counted from 1."""

    takes_coarse_logits = True

    def __init__(self, bad: int, value: float = math.nan) -> None:
        super().__init__()
        self.mixture = build_loss({"cross_entropy": 1, "dice": 1}, FORMAT)
        self.bad, self.value, self.calls = bad, value, 0

    def terms(self, logits, target):
        terms = self.mixture.terms(logits, target)
        return {**terms, "dice": terms["dice"] * self.value} if self.calls == self.bad else terms

    def forward(self, logits, target):
        # Validation calls too, but computes no gradient.
        self.calls += torch.is_grad_enabled()
        return self.mixture.combine(self.terms(logits, target))


class Watch(Callback):
    """The stems of each batch, and the weights before it."""

    def __init__(self):
        self.stems, self.weights = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stems.append(batch.stems)
        self.weights.append({k: v.clone() for k, v in module.model.network.named_parameters()})


def poisoned_run(tmp_path, bad, out="run", **options):
    watch = Watch()
    with pytest.raises(ValueError, match="Training stopped") as stop:
        run(tmp_path, FORMAT, out, loss=Poisoned(bad), callbacks=[watch], **options)
    return str(stop.value), json.loads((tmp_path / out / "nonfinite.json").read_text()), watch


def test_a_loss_that_is_no_number_stops_with_its_samples(tmp_path):
    # Two batches of three in each of two epochs: call 4 is the second batch of the second epoch.
    told, facts, watch = poisoned_run(tmp_path, 4)
    (found,) = facts["at"]
    assert (found["epoch"], found["batch"], found["step"]) == (1, 1, 3)
    assert found["stems"] == watch.stems[3]
    assert found["loss"] == found["terms"]["dice"] == "nan"
    assert math.isfinite(float(found["terms"]["cross_entropy"]))
    assert facts["settings"]["seed"] == 0
    for text in ("loss is nan in epoch 2, batch 2 of 2", ", ".join(watch.stems[3]), "nonfinite.json", "train.lr"):
        assert text in told
    assert len(watch.stems) == 4
    # Before the gradients: the weights are those that the batch began with.
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    load_model(tmp_path / "run")


def test_the_checkpoint_before_is_whole_and_goes_on_as_if_nothing_had_been(tmp_path):
    whole, train, val, *_ = run(tmp_path, FORMAT, "whole")
    again = {"train": train, "val": val}
    told, _, _ = poisoned_run(tmp_path, 4, "cut", **again)
    assert str(tmp_path / "cut" / "checkpoints" / "last.ckpt") in told
    resumed, *_ = run(tmp_path, FORMAT, "cut", resume=True, **again)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert not (tmp_path / "cut" / "nonfinite.json").exists()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_losses_stop_too(tmp_path, value):
    with pytest.raises(ValueError, match=f"loss is {value} in epoch 1, batch 1 of 2"):
        run(tmp_path, FORMAT, loss=Poisoned(1, value))


@pytest.fixture
def deferred(monkeypatch):
    """The way of a GPU, on which nothing is read at each step."""
    for name in ("on_before_backward", "on_train_batch_end"):
        plain = getattr(FiniteLoss, name)

        def on_a_device(self, trainer, module, *args, plain=plain):
            return plain(self, trainer, _Elsewhere(module), *args)

        monkeypatch.setattr(FiniteLoss, name, on_a_device)


class _Elsewhere:
    device = torch.device("cuda")

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def test_on_a_device_the_first_bad_batch_is_named_though_later_ones_ran(tmp_path, deferred):
    # All steps after the first bad one are bad, as its gradients are in the weights; looked at before validation.
    told, facts, watch = poisoned_run(tmp_path, 1)
    assert len(watch.stems) == 2
    assert facts["at"][0]["stems"] == watch.stems[0]
    assert facts["at"][0]["terms"] is None
    assert "epoch 1, batch 1 of 2" in told
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_on_a_device_no_checkpoint_is_written_after_a_bad_loss(tmp_path, deferred):
    _, _, watch = poisoned_run(tmp_path, 3, checkpoint_every_steps=1)
    assert len(watch.stems) == 3
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())


def test_on_a_device_losses_are_looked_at_every_so_many_batches(tmp_path, deferred, monkeypatch):
    monkeypatch.setattr("segkit.training.nonfinite._EVERY", 2)
    _, _, watch = poisoned_run(tmp_path, 1, batch_size=2)  # three batches
    assert len(watch.stems) == 2


class Blow(Callback):
    """Makes a gradient infinite in the last step of an epoch, though its losses are numbers."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.fit_loop.epoch_loop.batch_idx == trainer.num_training_batches - 1:
            next(module.parameters()).grad.fill_(math.inf)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path, accumulate):
    with pytest.raises(ValueError, match="weights are NaN or infinite after epoch 1, batch 3 of 3") as stop:
        run(tmp_path, FORMAT, batch_size=2, accumulate=accumulate, callbacks=[Blow()])
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["found"] == "weights"
    assert "No checkpoint was written yet." in str(stop.value)


def test_losses_are_told_as_they_are_when_gradients_are_summed(tmp_path):
    class Large(torch.nn.Module):
        def forward(self, logits, target):
            return logits.sum() * 0 + 3.0

    with pytest.raises(ValueError, match="weights are NaN"):
        run(tmp_path, FORMAT, loss=Large(), batch_size=2, accumulate=3, callbacks=[Blow()])
    (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())["at"]
    assert float(found["loss"]) == pytest.approx(3.0)


def test_running_statistics_that_are_no_numbers_are_never_saved(tmp_path):
    class Spoil(Callback):
        """As a batch of float images with NaN does, whose pixels are all ignored."""

        def on_train_batch_end(self, trainer, module, *args):
            norms = (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d))
            next(norms).running_mean.fill_(math.nan)

    with pytest.raises(ValueError, match="weights are NaN or infinite"):
        run(tmp_path, FORMAT, callbacks=[Spoil()])
    assert not (tmp_path / "run" / "model").exists()


def test_an_average_of_weights_is_kept_whole(tmp_path):
    poisoned_run(tmp_path, 4, checkpoint_every_steps=1, ema=0.9)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (average,) = (state["average"] for name, state in saved["callbacks"].items() if "AveragedWeights" in name)
    assert saved["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in average.values())
