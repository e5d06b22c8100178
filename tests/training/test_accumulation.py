"""Gradients of several batches make one step: their mean, and less in a step that ends an epoch early."""

from __future__ import annotations

import copy

import torch

from segkit.data.loaders import train_loader
from segkit.losses.build import build_loss
from segkit.training.fit import fit
from segkit.training.step import training_loss
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import small_model

FORMAT = FORMATS["exclusive"]
LR = 0.01


def test_a_step_is_the_mean_of_its_batches_and_the_last_of_an_epoch_is_smaller(tmp_path):
    train = write_set(tmp_path / "t", FORMAT, 6, (32, 32))
    torch.manual_seed(0)
    model = small_model(FORMAT)
    by_hand = copy.deepcopy(model)
    sgd = {"name": "sgd", "momentum": 0, "nesterov": False}
    options = {"epochs": 1, "batch_size": 2, "lr": LR, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
    options |= {"optimizer": sgd, "clip_norm": None, "workers": 0, "device": "cpu", "channels_last": False}
    fit(model, train, out=tmp_path / "run", accumulate=2, tell=lambda line: None, **options)

    loss = build_loss({"cross_entropy": 1, "dice": 1}, FORMAT)
    by_hand.statistics = model.statistics
    by_hand.train()
    batches = list(train_loader(train, 2, seed=0, workers=0))
    for step in (batches[:2], batches[2:]):
        by_hand.zero_grad()
        for batch in step:
            (training_loss(by_hand, loss, batch.images, batch.target) / 2).backward()
        with torch.no_grad():
            for weight in by_hand.parameters():
                weight -= LR * weight.grad
    for name, value in by_hand.network.state_dict().items():
        assert torch.allclose(model.network.state_dict()[name].float(), value.float(), atol=1e-6), name
