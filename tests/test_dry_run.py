"""A few batches of everything, and the plan of the run that would follow."""

from __future__ import annotations

import json
import os
import signal

import pytest

from segkit.dry_run import plan_rows
from tests.test_cli import segkit, write_config


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_dry_run_tells_the_plan_and_leaves_nothing_behind(tmp_path, temporary, monkeypatch, capsys):
    config = write_config(tmp_path / "data", "overlapping")
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    chosen = ("train.epochs=7", "train.validate_every=2", "train.accumulate=2", "train.loggers=[tensorboard]")
    assert segkit("train", config, *chosen, "--dry-run", "--json", "plan.json") == 0
    assert list(temporary.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [*before[:1], "plan.json", *before[1:]]
    plan = json.loads((tmp_path / "plan.json").read_text())
    # 5 images make 2 batches of 2, and those one step.
    assert (plan["images"], plan["train_size_hw"]) == ({"training": 5, "validation": 2}, [32, 32])
    assert (plan["batch_size"], plan["accumulate"], plan["processes"]) == (2, 2, 1)
    assert (plan["steps_per_epoch"], plan["epochs"], plan["steps"]) == (1, 7, 7)
    batch_s, image_s = plan["step_s"] / 2, plan["validation_image_s"]
    assert batch_s > 0
    assert image_s > 0
    assert plan["epoch_s"] == pytest.approx(2 * batch_s + 2 * image_s)
    assert plan["total_s"] == pytest.approx(7 * 2 * batch_s + 4 * 2 * image_s)  # after epochs 2, 4, 6 and 7
    assert plan["checkpoint_bytes"] > 3 * 4 * plan["parameters"]  # weights and two moments of AdamW
    assert 4 * plan["parameters"] < plan["bundle_bytes"] < plan["checkpoint_bytes"]
    told = capsys.readouterr().out
    for what, _ in plan_rows(plan):
        assert what in told


def test_the_run_that_follows_has_the_same_numbers(tmp_path):
    config = write_config(tmp_path / "data", "binary")
    assert segkit("train", config, "--out", tmp_path / "plain") == 0
    assert segkit("train", config, "--dry-run") == 0
    assert segkit("train", config, "--out", tmp_path / "after") == 0
    assert (tmp_path / "after/metrics.csv").read_bytes() == (tmp_path / "plain/metrics.csv").read_bytes()


def test_processes_share_the_steps_of_the_plan(tmp_path):
    config = write_config(tmp_path / "data", "binary")
    chosen = ("train.devices=2", "train.freeze_encoder_epochs=1")
    assert segkit("train", config, *chosen, "--dry-run", "--json", tmp_path / "plan.json") == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["processes"], plan["steps_per_epoch"]) == (2, 1)  # one process would make two


def test_passes_over_the_images_are_steps_of_an_epoch(tmp_path, capsys):
    config = write_config(tmp_path / "data", "binary")
    chosen = ("train.repeat=7", "train.epochs=3")
    assert segkit("train", config, *chosen, "--dry-run", "--json", tmp_path / "plan.json") == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["repeat"], plan["steps_per_epoch"], plan["steps"]) == (7, 17, 51)  # 35 images by 2
    assert plan["epoch_s"] > 16 * plan["step_s"]
    assert "5 training, 7 times per epoch, 2 validation" in capsys.readouterr().out


def test_memory_is_told_though_the_search_for_a_batch_size_has_taken_it_before(tmp_path, monkeypatch):
    config = write_config(tmp_path / "data", "binary")
    peaks = iter([100, 900, 900, 900])  # before, after a search that took 800, and never more again
    monkeypatch.setattr("segkit.dry_run.peak_memory", lambda: next(peaks))
    monkeypatch.setattr("segkit.training.batch_size.largest_by_slope", lambda *_: 2)
    options = ("--dry-run", "--json", tmp_path / "plan.json")
    assert segkit("train", config, "train.batch_size=auto", *options) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["memory_bytes"] == 800


def test_what_breaks_in_training_breaks_in_a_dry_run(tmp_path, temporary, monkeypatch, capsys):
    config = write_config(tmp_path / "data", "binary")

    def fail(*args, **kwargs):
        raise ValueError("no room for a picture")

    monkeypatch.setattr("segkit.dry_run.draw_pictures", fail)
    assert segkit("train", config, "--dry-run") == 2
    assert "no room for a picture" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_sigterm_leaves_nothing_behind(tmp_path, temporary, monkeypatch):
    config = write_config(tmp_path / "data", "binary")

    def unheeded(number, frame):
        raise AssertionError("SIGTERM was left to the system")

    monkeypatch.setattr("segkit.dry_run.draw_pictures", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, unheeded)
    try:
        assert segkit("train", config, "--dry-run") == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(temporary.iterdir()) == []


def test_a_dry_run_goes_with_a_config_alone(tmp_path, capsys):
    config = write_config(tmp_path / "data", "binary")
    assert segkit("train", config, "--dry-run", "--out", tmp_path / "run") == 2
    assert "--dry-run without --out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
