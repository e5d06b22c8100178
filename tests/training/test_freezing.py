from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.scenes import FORMATS
from tests.training.test_fit import run, small_model

FORMAT = FORMATS["exclusive"]


class Watch(Callback):
    """The encoder after each epoch, how often AdamW has moved it, and whether its features led back into it."""

    def __init__(self):
        self.encoders, self.moved, self.led_back = [], [], []

    def on_train_start(self, trainer, module):
        module.model.network.encoder.register_forward_hook(
            lambda encoder, given, features: self.led_back.append((encoder.training, features[-1].requires_grad))
        )

    def on_train_epoch_end(self, trainer, module):
        encoder = module.model.network.encoder
        self.encoders.append({name: value.clone() for name, value in encoder.state_dict().items()})
        state = trainer.optimizers[0].state
        self.moved.append({int(state[p]["step"]) if p in state else 0 for p in encoder.parameters()})


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_no_number_of_a_frozen_encoder_changes_and_then_all_do(tmp_path):
    model = small_model(FORMAT)
    start = {name: value.clone() for name, value in model.network.encoder.state_dict().items()}
    head = model.network.segmentation_head[0].weight.clone()
    watch = Watch()
    options = {"epochs": 3, "freeze_encoder_epochs": 2, "weight_decay": 0.5, "callbacks": [watch]}
    run(tmp_path, FORMAT, model=model, **options)
    assert same(watch.encoders[0], start)
    assert same(watch.encoders[1], start)  # after a validation, from which layers come back as they were
    assert [name for name in start if torch.equal(watch.encoders[2][name], start[name])] == []
    assert watch.moved == [{0}, {0}, {2}]  # moments and their corrections begin when it thaws
    trained = [led_back for training, led_back in watch.led_back if training]
    assert trained == [False] * 4 + [True] * 2
    assert not torch.equal(model.network.segmentation_head[0].weight, head)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_frozen_for_good_stays_so(tmp_path):
    model = small_model(FORMAT)
    stem = next(model.network.encoder.parameters()).requires_grad_(False)
    run(tmp_path, FORMAT, model=model, freeze_encoder_epochs=1)
    assert not stem.requires_grad


def test_a_run_that_fails_leaves_nothing_frozen(tmp_path):
    class Fail(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError

    model = small_model(FORMAT)
    with pytest.raises(RuntimeError):
        run(tmp_path, FORMAT, model=model, freeze_encoder_epochs=1, callbacks=[Fail()])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"freeze_encoder_epochs": 1}, "no part `encoder` that could be frozen"),
        ({"layer_decay": 0.7}, "no part `encoder`, whose stages"),
    ],
)
def test_a_network_without_an_encoder_is_refused_before_anything_is_written(tmp_path, option, message):
    model = small_model(FORMAT)
    model.network.backbone, model.network.encoder = model.network.encoder, None
    with pytest.raises(ValueError, match=message):
        run(tmp_path, FORMAT, model=model, deep_supervision=0.4, **option)
    assert not (tmp_path / "run").exists()
    assert not any(m._forward_hooks for m in model.modules())
