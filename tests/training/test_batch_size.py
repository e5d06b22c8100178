"""The batch that fits in memory: stand-ins for devices that run full, and a CPU."""

from __future__ import annotations

import pytest
import torch

from segkit.config import read_config
from segkit.experiment import prepare
from segkit.models.builder import build_model
from segkit.training import batch_size
from segkit.training.batch_size import largest_by_slope, largest_by_trial
from segkit.training.fit import fit
from tests.scenes import FORMATS, write_set
from tests.test_cli import segkit, write_config


def device(images):
    """Takes 100 bytes and 10 for each image, and runs full above `images`."""
    tried = []

    def peak_of(size):
        tried.append(size)
        if size > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 100 + 10 * size

    return peak_of, tried


def test_by_trial_the_largest_power_of_two_before_memory_is_full():
    peak_of, tried = device(images=12)
    assert largest_by_trial(peak_of, 64, room=1000) == 8
    assert tried == [2, 4, 8, 16]
    assert largest_by_trial(peak_of, 4, room=1000) == 4
    assert largest_by_trial(peak_of, 64, room=179) == 4  # 8 images take 180
    assert largest_by_trial(peak_of, 1, room=1000) == 1
    assert [largest_by_trial(device(images)[0], 64, room=1000) for images in (1, 0)] == [1, 0]


def test_what_is_wrong_with_a_step_is_not_taken_for_a_full_device():
    def peak_of(size):
        raise RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." if size == 2 else "mat1 and mat2 cannot be joined"
        )

    with pytest.raises(RuntimeError, match="mat1"):  # the first is how cuDNN says that memory is full
        largest_by_trial(peak_of, 8, room=1000)


def process(held, image=10):
    """Held `held` bytes at most before, and takes 100 and `image` for each image."""
    peak, tried = held, []

    def peak_of(size):
        nonlocal peak
        tried.append(size)
        peak = max(peak, 100 + image * size)
        return peak

    return peak_of, tried


@pytest.mark.parametrize("held", [0, 125, 150, 300])
def test_on_a_cpu_by_what_one_image_takes_whatever_was_held_before(held):
    peak_of, tried = process(held)
    assert largest_by_slope(peak_of, 256, room=1290) == 128
    assert max(tried) <= 128
    peak_of, tried = process(held)
    assert largest_by_slope(peak_of, 16, room=1e9) == 16
    assert max(tried) <= 16


def test_on_a_cpu_memory_is_not_filled_to_find_out():
    peak_of, tried = process(held=0)
    assert largest_by_slope(peak_of, 1024, room=50) == 4
    assert max(tried) <= 8
    assert largest_by_slope(process(0)[0], 1024, room=5) == 0


def test_auto_trains_as_the_number_that_it_stands_for(tmp_path, capsys):
    config = write_config(tmp_path / "data", "overlapping")
    assert segkit("train", config, "train.batch_size=auto", "--out", tmp_path / "auto") == 0
    assert "batch size: 4" in capsys.readouterr().out  # of 5 images
    assert read_config(tmp_path / "auto" / "config.yaml").train.batch_size == 4
    assert segkit("train", config, "train.batch_size=4", "--out", tmp_path / "four") == 0
    for file in ("metrics.csv", "scores.json", "config.yaml"):
        assert (tmp_path / "auto" / file).read_bytes() == (tmp_path / "four" / file).read_bytes()


def test_fit_measures_with_the_whole_training_and_leaves_the_model(tmp_path, monkeypatch):
    train = write_set(tmp_path / "train", FORMATS["binary"], 9)
    val = write_set(tmp_path / "val", FORMATS["binary"], 3)
    model = build_model(
        "unet", "tu-test_resnet", FORMATS["binary"], weights=None, in_channels=3, decoder_channels=[16, 8, 8, 8, 8]
    )
    told, trained = [], []
    train_once = batch_size._train

    def full_above_two(module, size, place):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_once(module, size, place)
        assert module.trainer.global_step == 2
        assert module.scores is not None  # it validated
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        trained.append(size)
        if size > 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(batch_size, "_train", full_above_two)
    monkeypatch.setattr(batch_size, "largest_by_slope", largest_by_trial)
    options = {"batch_size": "auto", "epochs": 1, "workers": 0, "device": "cpu", "ema": 0.9, "loggers": []}
    fit(model, train, val, out=tmp_path / "run", tell=told.append, deep_supervision=0.4, **options)
    assert (told[0], trained) == ("batch size: 2", [2, 4])
    with pytest.raises(ValueError, match="give the number that the run had"):
        fit(model, train, val, out=tmp_path / "run", resume=True, **options)


def test_a_device_that_is_too_small_is_told(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / "data", "binary")
    monkeypatch.setattr(batch_size, "available_memory", lambda: 1)
    assert segkit("train", config, "train.batch_size=auto", "--out", tmp_path / "run") == 2
    assert "not even one image fits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_image_alone_is_refused_where_images_are_mixed(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / "data", "binary")
    monkeypatch.setattr(batch_size, "largest_by_slope", lambda *_: 1)
    chosen = ("train.batch_size=auto", "data.crop=null", "--out", tmp_path / "run")
    assert segkit("train", config, "train.mix={cutmix: 0.5}", *chosen) == 2
    assert "one image here, and train.mix takes another" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert segkit("train", config, *chosen) == 0


def test_processes_take_the_number_of_the_one_that_started_them(tmp_path, monkeypatch):
    config = write_config(tmp_path / "data", "binary")
    chosen = ("train.batch_size=auto", "train.devices=2", "--json", tmp_path / "plan.json", "--dry-run")
    monkeypatch.setenv(batch_size._VARIABLE, "16")  # of a run before
    monkeypatch.setattr(batch_size, "available_memory", lambda: 2**40)
    assert segkit("train", config, *chosen) == 0
    assert batch_size.os.environ[batch_size._VARIABLE] == "2"  # 5 images for two
    monkeypatch.setenv(batch_size._VARIABLE, "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    experiment = read_config(config, chosen[:2])
    assert prepare(experiment, resume=False, check=False).config.train.batch_size == 16


def test_processes_that_cannot_agree_are_refused(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / "data", "binary")
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert segkit("train", config, "train.batch_size=auto", "--out", tmp_path / "run") == 2
    assert "were started one by one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
