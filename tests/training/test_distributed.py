"""Two processes on the CPU, over gloo, train as one does, and end together."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segkit.models.builder import build_model
from segkit.training.distributed import (
    DataParallel,
    Processes,
    count_processes,
    has_unused_parameters,
    model_to_train,
    pick_strategy,
)
from segkit.training.settings import TrainSettings
from segkit.training.sharding import ShardedStrategy
from tests.scenes import write_set
from tests.test_cli import write_config
from tests.training.ranks import FORMAT, compare

RANKS = Path(__file__).with_name("ranks.py")
# Far more than any of these takes: what hangs fails.
TIMEOUT_S = 600


def start(*arguments: object) -> subprocess.Popen:
    path = os.pathsep.join([str(RANKS.parents[2]), *sys.path])
    # For what processes of one machine say to each other.
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> str:
    """What it printed; its processes are gone."""
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all that it started: its session is its own


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs of two processes under torchrun in `two`, of one in `one`."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        # No number of images is one of whole batches, nor even.
        for part, count in (("train", 13), ("val", 3), ("one", 1)):
            write_set(root / name / part, FORMAT, count, (80, 72))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    process = start(*torchrun, RANKS, "compare", root / "two")
    said = finish(process)
    assert process.returncode == 0, said
    compare(root / "one")
    return root


def test_two_processes_see_the_batches_of_one(runs):
    order = [json.loads((runs / "two" / f"rank{rank}.json").read_text())["order"] for rank in range(2)]
    whole = json.loads((runs / "one/rank0.json").read_text())["order"]
    assert len(whole) == 12  # six of four images in each epoch of two passes; the last two images are left out
    assert [sorted(a + b) for a, b in zip(*order, strict=True)] == [sorted(batch) for batch in whole]


def test_two_processes_learn_the_weights_of_one(runs):
    one, two = weights(runs / "one/double"), weights(runs / "two/double")
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=0, atol=1e-6), name


def test_two_processes_score_exactly_what_one_scores(runs):
    scores = [json.loads((runs / path).read_text())["scores"] for path in ("one/rank0.json", "two/rank0.json")]
    assert scores[0] == scores[1] == json.loads((runs / "two/rank1.json").read_text())["scores"]
    assert scores[0]["images"] == 3
    for one, two in zip(rows(runs / "one/double"), rows(runs / "two/double"), strict=True):
        for name in ("pooled_iou", "pooled_dice", "per_image_iou", "per_image_dice"):
            assert one[name] == two[name], name
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-6)
        assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=1e-6)


def test_weights_in_shares_train_as_whole_ones_do(runs):
    whole, shared = weights(runs / "two/ddp"), weights(runs / "two/fsdp")
    for name, value in whole.items():
        assert torch.allclose(value, shared[name], rtol=0, atol=1e-4), name
    for one, two in zip(rows(runs / "two/ddp"), rows(runs / "two/fsdp"), strict=True):
        assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=1e-4)
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_that_were_preempted_go_on_as_if_they_had_not(runs, strategy):
    whole, cut = runs / "two" / strategy, runs / "two" / f"{strategy}-cut"
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[name]), name


@pytest.mark.parametrize("how", ["fail", "stop"])
def test_a_process_that_ends_ends_the_run(tmp_path, how):
    for part, count in (("train", 13), ("val", 3)):
        write_set(tmp_path / part, FORMAT, count, (80, 72))
    process = start(RANKS, "end", tmp_path, how)
    said = finish(process)
    if how == "stop":
        assert process.returncode == 75, said
        assert torch.load(tmp_path / "stop/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    else:
        assert process.returncode == 1, said
        assert "ValueError: broken on purpose" in said
        assert "another process of this run has ended" in said


def test_a_loss_of_one_process_that_is_no_number_stops_both(tmp_path):
    for part, count in (("train", 13), ("val", 3)):
        write_set(tmp_path / part, FORMAT, count, (80, 72))
    process = start(RANKS, "end", tmp_path, "nan")
    said = finish(process)
    assert process.returncode == 1, said
    assert "the training loss is nan in epoch 2, batch" in said
    facts = json.loads((tmp_path / "nan/nonfinite.json").read_text())
    (found,) = facts["at"]
    assert (found["rank"], found["epoch"], len(found["stems"])) == (1, 1, 2)
    saved = torch.load(tmp_path / "nan/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_the_command_trains_in_two_processes_and_tells_everything_once(tmp_path, monkeypatch):
    config = write_config(tmp_path, "exclusive")
    text = config.read_text().replace("epochs: 1", "epochs: 2, devices: 2").replace("crop: 32", "crop: 32, cache: disk")
    config.write_text(text + "loss: {cross_entropy: {class_weights: balanced}}\n")
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    process = start("-m", "segkit.cli", "train", config, "--out", tmp_path / "run")
    said = finish(process)
    assert process.returncode == 0, said
    for once in ("run folder:", "images: 5 training", "class weights:", "epoch 1/2", "epoch 2/2", "scores in percent"):
        assert said.count(once) == 1, said
    assert "Warning" not in said
    assert json.loads((tmp_path / "run/environment.json").read_text())["world_size"] == 2
    assert json.loads((tmp_path / "run/scores.json").read_text())["images"] == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2  # one copy of each part, and nothing half written


# Without processes -----------------------------------------------------------------------------------------


def settings(**given):
    return TrainSettings(device="cpu", **given)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("unet", "tu-test_resnet", FORMAT, weights=None, decoder_channels=[16, 16, 8, 8, 8])


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (4, 3)), (TORCHRUN, (2, 3)), (SRUN, (4, 2)), ({"SLURM_STEP_NUM_TASKS": "1"}, (4, 3))],
)
def test_launchers_say_how_many_processes_there_are(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = count_processes(settings(devices=4, nodes=3), torch.device("cpu"))
    assert (found.devices, found.nodes, found.total) == (*expected, expected[0] * expected[1])


def test_one_gpu_is_not_for_several_processes():
    with pytest.raises(ValueError, match="device is cuda:1, one GPU, for 2 processes"):
        count_processes(settings(devices=2), torch.device("cuda:1"))
    assert count_processes(settings(), torch.device("cuda:1")).devices == [1]


def test_strategies(model):
    two = Processes(torch.device("cpu"), 2, 1)
    assert isinstance(pick_strategy(settings(), two, model), DataParallel)
    assert isinstance(pick_strategy(settings(strategy="fsdp"), two, model), ShardedStrategy)
    assert pick_strategy(settings(strategy="fsdp"), Processes(torch.device("cpu"), 1, 1), model) == "auto"
    with pytest.raises(ValueError, match=r"strategy is 'fdsp': expected .* Did you mean .fsdp"):
        pick_strategy(settings(strategy="fdsp"), two, model)
    for refused in ({"ema": 0.9}, {"compile": True}, {"deep_supervision": 0.4}):
        with pytest.raises(ValueError, match=f"{next(iter(refused))} needs them whole"):
            pick_strategy(settings(strategy="fsdp", **refused), two, model)


def test_parameters_without_a_gradient_are_found(model):
    assert not has_unused_parameters(model)
    model.network.register_module("unused", torch.nn.Linear(2, 2))
    assert has_unused_parameters(model)


def test_batchnorm_is_synchronised_where_that_works_and_keeps_its_activation(model):
    cpu, gpus = (Processes(torch.device(kind), 2, 1) for kind in ("cpu", "cuda"))
    assert model_to_train(model, settings(), cpu) is model
    assert model_to_train(model, settings(sync_batchnorm=False), gpus) is model
    with pytest.raises(ValueError, match="torch has no SyncBatchNorm on a cpu"):
        model_to_train(model, settings(sync_batchnorm=True), cpu)
    efficient = build_model("unet", "tu-test_efficientnet", FORMAT, weights=None)
    for plain in (model, efficient):
        trained = model_to_train(plain, settings(), gpus)
        before, after = (dict(m.network.named_modules()) for m in (plain, trained))
        assert before.keys() == after.keys()
        for name, module in before.items():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert isinstance(after[name], torch.nn.SyncBatchNorm)
                assert type(getattr(module, "act", None)) is type(getattr(after[name], "act", None))
        image = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
        assert torch.equal(plain.eval()(image), trained.eval()(image))
        assert plain.state_dict().keys() == trained.state_dict().keys()
