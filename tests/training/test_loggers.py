from __future__ import annotations

import errno
import json
import os
import sys
import types

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from segkit.training.loggers import check_loggers
from segkit.training.settings import train_settings
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model


class Stop(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 5:
            raise RuntimeError("stopped")


def logged(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_of_a_resumed_run_repeats_no_step(tmp_path):
    format = FORMATS["binary"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 2)
    options = {"train": train, "val": val, "epochs": 4, "pictures_every": 2}
    run(tmp_path, format, "whole", **options)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, format, "cut", **options, callbacks=[Stop()])
    run(tmp_path, format, "cut", model=small_model(format, seed=9), **options, resume=True)
    whole, cut = logged(tmp_path / "whole"), logged(tmp_path / "cut")
    assert {len(points) for tag, points in whole.items() if tag == "pooled_iou"} == {4}
    assert cut == whole
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard")).Reload()
    assert [e.step for e in events.Images("validation")] == [4, 8]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the thread that writes
def test_on_a_full_disk_tensorboard_is_left_out_and_training_goes_on(tmp_path, monkeypatch, caplog):
    written = []

    def write(self, data):
        written.append(data)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", write)
    *_, result, _ = run(tmp_path, FORMATS["binary"], epochs=3, pictures_every=1)
    assert result.epochs == 3
    assert caplog.text.count("TensorBoard gets no more of this run (No space left on device)") == 1
    assert len(written) == 6


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("wandb", {"wandb": {}}),
        ([], {}),
        (None, {}),
        (["tensorboard", {"wandb": {"mode": "offline"}}], {"tensorboard": {}, "wandb": {"mode": "offline"}}),
        ({"mlflow": None}, {"mlflow": {}}),
    ],
)
def test_loggers_are_given_by_name_or_with_options(given, expected):
    assert train_settings(loggers=given).loggers == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [(["wandd"], "expected names out of tensorboard, wandb, mlflow"), ({"wandb": 3}, "option: value"), (3, "option")],
)
def test_loggers_that_are_not_known_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        train_settings(loggers=given)


def test_a_logger_without_its_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("segkit.training.loggers.find_spec", lambda name: None if name == "mlflow" else name)
    with pytest.raises(ValueError, match=r"pip install 'segkit\[mlflow\]'"):
        run(tmp_path, FORMATS["binary"], loggers=["mlflow"])
    assert not (tmp_path / "run").exists()
    check_loggers({"tensorboard": {}})


def test_options_that_a_logger_does_not_have_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tensorboard did not start .*colour"):
        run(tmp_path, FORMATS["binary"], loggers={"tensorboard": {"colour": 3}})


def test_without_loggers_nothing_is_logged(tmp_path):
    run(tmp_path, FORMATS["binary"], epochs=1, loggers=[])
    assert not (tmp_path / "run" / "tensorboard").exists()


class StandIn:
    """What `WandbLogger` uses of a run of wandb."""

    def __init__(self, module, given):
        self.module, self.given, self.rows = module, given, []
        self.id = given["id"] or "first"
        self.name, self.config = given["name"], types.SimpleNamespace(update=self._choose)
        self.choices = []

    def _choose(self, values, allow_val_change):
        self.choices.append(values)

    def log(self, values):
        self.rows.append(values)


@pytest.fixture
def wandb(monkeypatch):
    """A module that stands in for wandb and keeps what it gets."""
    module = types.ModuleType("wandb")
    module.run, module.runs = None, []

    def init(**given):
        module.run = StandIn(module, given)
        module.runs.append(module.run)
        return module.run

    def finish():
        module.run = None

    module.init, module.finish, module.Image = init, finish, lambda picture: picture.shape
    disabled, kinds = types.ModuleType("wandb.sdk.lib"), types.ModuleType("wandb.wandb_run")
    disabled.RunDisabled, kinds.Run = type("RunDisabled", (), {}), StandIn
    for name, part in (
        ("wandb", module),
        ("wandb.sdk", disabled),
        ("wandb.sdk.lib", disabled),
        ("wandb.wandb_run", kinds),
    ):
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("segkit.training.loggers.find_spec", lambda name: name)
    return module


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, wandb):
    format = FORMATS["binary"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 2)
    options = {"train": train, "val": val, "epochs": 4, "pictures_every": 2, "choices": {"augment": "light"}}
    options["loggers"] = {"wandb": {"project": "discs", "mode": "offline"}}
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, format, **options, callbacks=[Stop()])
    assert json.loads((tmp_path / "run" / "loggers.json").read_text()) == {"wandb": "first"}
    run(tmp_path, format, model=small_model(format), **options, resume=True)
    first, second = wandb.runs
    assert (first.given["id"], second.given["id"]) == (None, "first")
    assert (first.given["project"], first.given["mode"]) == ("discs", "offline")
    assert (first.choices, second.choices) == ([{"augment": "light"}], [])
    pictures = [row["validation"][0][2] for row in first.rows + second.rows if "validation" in row]
    assert pictures == [3, 3]
    assert wandb.run is None  # the next run of this process gets one of its own


def test_a_run_of_wandb_that_the_caller_began_is_left_open(tmp_path, wandb):
    theirs = wandb.init(id="theirs", name="theirs")
    run(tmp_path, FORMATS["binary"], epochs=1, loggers=["wandb"])
    assert wandb.run is theirs
    assert any("pooled_iou" in row for row in theirs.rows)


def test_pictures_do_not_change_what_is_trained(tmp_path):
    format = FORMATS["exclusive"]
    train, val = write_set(tmp_path / "t", format, 6), write_set(tmp_path / "v", format, 5)
    with_, *_ = run(tmp_path, format, "with", train=train, val=val, pictures_every=1)
    without, *_ = run(tmp_path, format, "without", train=train, val=val, pictures_every=None)
    assert (tmp_path / "with" / "metrics.csv").read_text() == (tmp_path / "without" / "metrics.csv").read_text()
    for name, value in with_.network.state_dict().items():
        assert torch.equal(value, without.network.state_dict()[name]), name
    assert len(list((tmp_path / "with" / "pictures" / "epochs").iterdir())) == 2
    assert not (tmp_path / "without" / "pictures").exists()
