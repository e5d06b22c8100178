"""A run that was killed and resumed, however often, ends as one that was not: bit for bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from segkit.data.augment import build_augment
from segkit.inference import overlay
from segkit.models.builder import build_model
from segkit.training import callbacks, checkpoint, compiling
from segkit.training.checkpoint import clear_leftovers, write_durably
from segkit.training.fit import fit
from segkit.training.preemption import Preempted
from tests.scenes import FORMATS, write_set
from tests.test_cli import write_config

FORMAT = FORMATS["exclusive"]
# Seven samples by two: three batches in an epoch, the last sample is dropped.
OPTIONS = {"epochs": 3, "batch_size": 2, "lr": 3e-3, "workers": 0, "device": "cpu"}
CASES = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "ema": {"ema": 0.9, "accumulate": 2},
    "one cycle": {"schedule": "one_cycle", "optimizer": "muon", "layer_decay": 0.7},
    "frozen encoder": {"freeze_encoder_epochs": 1, "ema": 0.9},
    "on device": {"data_on_device": True},
    "mixed and supervised": {"mix": {"cutmix": 0.4, "classmix": 0.4}, "deep_supervision": 0.4},
    "the whole recipe": {
        **{"ema": 0.9, "freeze_encoder_epochs": 1, "layer_decay": 0.7, "accumulate": 2, "schedule": "one_cycle"},
        **{"mix": {"cutmix": 0.5, "copy_paste": 0.5, "classes": ["disc"]}, "deep_supervision": 0.4, "prior_bias": True},
        **{"optimizer": {"name": "sgd", "momentum": 0.8}, "compile": True},
    },
    "repeated images": {"repeat": 2, "epochs": 3, "ema": 0.9},
    "rare validation": {"validate_every": 3, "epochs": 4},
}


class Killed(BaseException):
    """Like SIGKILL, nothing handles it: what is not on disk is lost."""


class At(Callback):
    """Does something at one batch of training or validation: ("train" or "val", epoch, batch)."""

    def __init__(self, moment, action):
        self.moment, self.action = moment, action
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._at("train", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._at("val", trainer, batch_idx)

    def _at(self, stage, trainer, batch_idx):
        moment = (stage, trainer.current_epoch, batch_idx)
        self.seen.append(moment)
        if moment == self.moment:
            self.action()


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return write_set(root / "t", FORMAT, 7), write_set(root / "v", FORMAT, 3)


def train(out: Path, data, *callbacks, resume=False, **options):
    """Weights and metrics.csv of a run; its network has dropout, and starts elsewhere when it is resumed."""
    train, val = data
    options = {**OPTIONS, **options}
    train.augment = build_augment("fast_medical" if options.get("data_on_device") else "light", FORMAT, crop=32)
    torch.manual_seed(9 if resume else 0)
    sizes = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
    model = build_model("fpn", "tu-test_resnet", FORMAT, weights=None, **sizes)
    fit(model, train, val, out=out, callbacks=callbacks, resume=resume, tell=lambda line: None, **options)
    return model.network.state_dict(), (out / "metrics.csv").read_text()


def assert_same(run, other):
    assert run[1] == other[1]
    for name, value in run[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_and_terminated_again_and_again_ends_like_one_that_was_not(tmp_path, data, case, monkeypatch):
    options = CASES[case]
    # What is resumed is compiled too, but by nothing that takes minutes.
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    whole = train(tmp_path / "whole", data, **options)
    lives = [
        (("train", 0, 1), terminate, Preempted),
        (("train", 0, 2), terminate, Preempted),  # the last batch: validation, if there is one, is still to come
        (("train", 1, 2), kill, Killed),
        (("val", 2, 1), terminate, Preempted),
        (("val", 2, 0), kill, Killed),
        (("train", 2, 2), terminate, Preempted),
    ]
    for number, (moment, action, end) in enumerate(lives):
        at, begun = At(moment, action), number > 0
        if case == "rare validation" and moment[0] == "train" and moment[1] == 2 and action is terminate:
            at.moment = ("train", 3, 0)
        try:
            train(tmp_path / "cut", data, at, resume=begun, checkpoint_every_steps=2, **options)
        except end:
            assert at.moment in at.seen
        else:
            assert at.moment not in at.seen  # it was saved after that
    assert_same(train(tmp_path / "cut", data, resume=True, **options), whole)


def test_sigterm_ends_with_the_code_that_asks_to_be_started_again(tmp_path, data):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run", data, At(("train", 0, 0), terminate))
    assert stop.value.code == 75
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 3}, "train.batch_size times processes was 2; now it is 3"),
        ({"repeat": 2}, "train.repeat was 1; now it is 2"),
        ({"seed": 4}, "train.seed was 0; now it is 4"),
        ({}, "the number of training images was 7; now it is 6"),
    ],
)
def test_within_an_epoch_steps_see_the_images_that_they_would_have_seen(tmp_path, data, other, message):
    train(tmp_path / "whole", data, epochs=1)
    with pytest.raises(Preempted):
        train(tmp_path / "run", data, At(("train", 1, 0), terminate))
    fewer = data if other else (data[0].subset(data[0].stems[:6]), data[1])
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", fewer, resume=True, **other)
    train(tmp_path / "whole", fewer, resume=True, epochs=2, **other)  # between two epochs


@pytest.mark.parametrize(
    "other",
    [{"lr": 1e-3}, {"optimizer": "lion"}, {"schedule": "one_cycle"}, {"layer_decay": 0.5}, {"deep_supervision": 0.4}],
    ids=str,
)
def test_what_the_state_of_the_optimizer_decides_cannot_be_changed(tmp_path, data, other):
    train(tmp_path / "run", data, epochs=1)
    (name,) = other
    with pytest.raises(ValueError, match=f"^{name} is .*, but the run that is to be resumed has "):
        train(tmp_path / "run", data, resume=True, epochs=2, **other)


def test_sigterm_while_gradients_accumulate_waits_for_the_step(tmp_path, data):
    with pytest.raises(Preempted):
        train(tmp_path / "run", data, At(("train", 0, 0), terminate), accumulate=2)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["position"]["batches"] == 2


def test_a_validation_that_was_stopped_is_done_again_without_training(tmp_path, data):
    with pytest.raises(Preempted):
        train(tmp_path / "run", data, At(("val", 1, 0), terminate), epochs=2)
    seen = At(None, kill)
    train(tmp_path / "run", data, seen, resume=True, epochs=2)
    assert seen.seen == [("val", 1, 0), ("val", 1, 1)]


def test_a_run_stopped_while_averaged_weights_are_validated_goes_on_with_its_own(tmp_path, data):
    whole = train(tmp_path / "whole", data, epochs=2, ema=0.9)
    with pytest.raises(Preempted):
        train(tmp_path / "cut", data, At(("val", 0, 1), terminate), epochs=2, ema=0.9)
    assert_same(train(tmp_path / "cut", data, resume=True, epochs=2, ema=0.9), whole)


def test_a_checkpoint_that_is_half_written_is_no_checkpoint(tmp_path, data, monkeypatch):
    def write_half(path, content):
        if write_half.left == 0:
            (path.parent / f".{path.name}.0.part").write_bytes(content[: len(content) // 2])
            raise Killed
        write_half.left -= 1
        write_durably(path, content)

    whole = train(tmp_path / "whole", data)
    write_half.left = 4
    monkeypatch.setattr(checkpoint, "write_durably", write_half)
    with pytest.raises(Killed):
        train(tmp_path / "cut", data, checkpoint_every_steps=1)
    monkeypatch.undo()
    # with readers in processes of their own, in place of none
    assert_same(train(tmp_path / "cut", data, resume=True, workers=2), whole)
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["last.ckpt"]


def test_on_a_full_disk_training_goes_on_and_the_last_checkpoint_is_kept(tmp_path, data, monkeypatch, caplog):
    whole = train(tmp_path / "whole", data)
    real, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) > 2:  # file and folder of the first checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    assert_same(train(tmp_path / "cut", data, checkpoint_every_steps=2), whole)
    assert "step 3 was not saved (No space left on device); the one before it is kept" in caplog.text
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["last.ckpt"]
    assert_same(train(tmp_path / "cut", data, resume=True), whole)


def test_on_a_full_disk_training_goes_on_without_what_is_written_again(tmp_path, data, monkeypatch, caplog):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = train(tmp_path / "whole", data)
    monkeypatch.setattr(callbacks, "write_whole", full)  # of metrics.csv
    monkeypatch.setattr(overlay, "write_whole", full)  # of all pictures
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):  # by `train` here, which reads it
        train(tmp_path / "cut", data, pictures_every=3)
    for name in ("metrics.csv", "curves.png", "pictures/epochs/epoch_0003.png"):
        assert f"{tmp_path / 'cut' / name} was not written (No space left on device)" in caplog.text
    monkeypatch.undo()
    assert_same(train(tmp_path / "cut", data, resume=True), whole)


def test_the_best_epoch_so_far_is_not_compared_with_another_kind_of_score(tmp_path, data):
    train(tmp_path / "run", data, epochs=1)
    with pytest.raises(ValueError, match=r"monitor is val_loss, but the best epoch .* was chosen by pooled_iou"):
        train(tmp_path / "run", data, resume=True, epochs=2, monitor="val_loss")


def test_a_run_that_stopped_early_is_not_trained_on(tmp_path, data):
    options = {"epochs": 9, "lr": 1e-12, "patience": 1}
    whole = train(tmp_path / "run", data, **options)
    seen = At(None, kill)
    assert_same(train(tmp_path / "run", data, seen, resume=True, **options), whole)
    assert seen.seen == []


def test_a_bundle_that_was_being_replaced_is_put_back(tmp_path):
    (tmp_path / ".model-old-x/bundle").mkdir(parents=True)
    (tmp_path / ".model-old-x/bundle/segkit.json").write_text("{}")
    (tmp_path / ".model-y").mkdir()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/segkit.json").is_file()


@pytest.mark.parametrize("steps", [0, -1])
def test_checkpoints_every_no_step_are_refused(tmp_path, data, steps):
    with pytest.raises(ValueError, match="expected greater than 0"):
        train(tmp_path / "run", data, checkpoint_every_steps=steps)


def test_a_process_killed_at_twenty_random_moments_leaves_the_run_folder_of_one_that_was_not(tmp_path):
    from tests.test_cli import segkit

    config = write_config(tmp_path, "exclusive")
    text = config.read_text().replace("epochs: 1", "epochs: 6, checkpoint_every_steps: 1")
    config.write_text(text)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert segkit("train", config, "--out", whole) == 0
    lives = subprocess.run(
        [sys.executable, "-m", "tests.training.lives", config, cut],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert lives.returncode == 0, lives.stderr[-2000:]
    for event in ("within a checkpoint", "training_step", "fsync", "replace"):
        assert event in lives.stdout
    for run in (whole, cut):
        assert segkit("predict", run, tmp_path / "val/images", "--probabilities", "--out", run / "masks") == 0
    names = ["metrics.csv", "scores.json", "model/model.safetensors"]
    predicted = [path for path in sorted((whole / "masks").rglob("*.*")) if path.suffix != ".jsonl"]
    assert len(predicted) >= 2 * 2
    for name in (*names, *(str(path.relative_to(whole)) for path in predicted)):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, cut)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        one, two = (torch.utils._pytree.tree_leaves(state[part]) for state in states)
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, part
