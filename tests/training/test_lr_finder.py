"""The range test: what it suggests, and that nothing of it lasts."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch

from segkit.models.builder import build_model
from segkit.training.lr_finder import RangeTest, find_lr
from tests.scenes import FORMATS, write_set
from tests.test_cli import segkit, write_config


def sweep(losses):
    return RangeTest([10.0 ** (n / 10 - 6) for n in range(len(losses))], losses)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    steps = np.arange(70)
    falling = 2 - 1.5 / (1 + np.exp(-(steps - 30) / 4))  # fastest at step 30, a rate of 1e-3
    exploding = np.where(steps > 55, np.exp(steps - 55.0), falling)
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.02):
        found = sweep([*(exploding + rng.normal(0, noise, 70)).tolist(), math.inf])
        assert found.suggestion == pytest.approx(1e-3, rel=0.65)  # two steps on either side
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["losses"][-1] is None
    assert found.draw().shape[2] == 3


def test_no_suggestion_where_no_rate_lowers_the_loss():
    assert sweep([1.0 + n for n in range(30)]).suggestion is None
    assert sweep([math.nan]).suggestion is None
    assert sweep([math.nan]).draw().shape[2] == 3


def test_a_sweep_is_a_training_that_leaves_the_model_as_it_was(tmp_path):
    train = write_set(tmp_path, FORMATS["exclusive"], 6)
    torch.manual_seed(0)
    model = build_model(
        "unet", "tu-test_resnet", FORMATS["exclusive"], weights=None, in_channels=3, decoder_channels=[16, 8, 8, 8, 8]
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"batch_size": 2, "workers": 0, "device": "cpu"}
    found = find_lr(model, train, optimizer="sgd", **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.rates[:2] == pytest.approx([1e-6, 1e-6 * 1e7 ** (1 / 99)])
    assert len(found.losses) == len(found.rates)
    assert 1e-4 < found.suggestion < 10
    # At the first rates nothing is learned yet: these are the losses of the untrained network.
    assert min(found.smoothed) < 0.8 * np.mean(found.losses[:9])
    assert find_lr(model, train, optimizer="sgd", lr=0.3, schedule="poly", **options).losses == found.losses
    # Two batches a step.
    slow = find_lr(model, train, optimizer="sgd", accumulate=2, **options)
    assert slow.losses[0] == pytest.approx(np.mean(found.losses[:2]), rel=1e-3)


def test_the_command_line_draws_and_tells(tmp_path, capsys, monkeypatch):
    config = write_config(tmp_path / "data", "overlapping")
    monkeypatch.chdir(tmp_path)
    assert segkit("train", config, "--find-lr", "--json", "lr.json") == 0
    found = json.loads((tmp_path / "lr.json").read_text())
    assert f"train.lr={found['suggestion']:.2g}" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "runs" / "config-lr.png")).shape[1] == 960
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "lr.json", "runs"]
    assert segkit("train", config, "--find-lr", "--dry-run") == 2
