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

from tests.scenes import write_set
from tests.test_cli import write_config
from tests.training.ranks import FORMAT, compare

RANKS = Path(__file__).with_name("ranks.py")
# Far more than any of these takes: what hangs fails.
TIMEOUT_S = 120


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
    assert len(whole) == 9  # three of four images in each epoch; the last image is left out
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
