"""Shards: by number, from launchers, and two processes of a real torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segkit.formats.codecs import open_codec
from segkit.inference.shards import WHOLE, Shard, launched_shard, own_device
from segkit.models.bundle import save_bundle
from tests.inference.test_jobs import FORMAT, ROOT, TIMEOUT_S, contents, model, run, write_images


@pytest.mark.parametrize(("batches", "count"), [(10, 3), (2, 5), (0, 2), (7, 7), (1, 1)])
def test_every_batch_is_in_one_shard_and_shards_are_alike(batches, count):
    parts = [Shard(number, count).batches(batches) for number in range(1, count + 1)]
    assert [batch for part in parts for batch in part] == list(range(batches))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_are_counted_from_one():
    assert Shard.parse("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"
    for text in ("0/4", "5/4", "1", "a/b", "-1/4", "1/0", "1/2/3"):
        with pytest.raises(ValueError, match=r"expected I/N with I from 1 to N"):
            Shard.parse(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, WHOLE),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "6"}, Shard(3, 6, together=True)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7"}, Shard(8, 8)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, WHOLE),
    ],
)
def test_launchers_deal_out_shards(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_shard() == expected


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    assert own_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [own_device(device) for device in ("auto", "cuda", "cpu", "cuda:0")] == ["cuda:1", "cuda:1", "cpu", "cuda:0"]


def test_torchrun_shares_out_a_job_and_all_exit_once_it_is_joined(tmp_path):
    images = write_images(tmp_path / "in", 10, broken=1)
    save_bundle(model(), tmp_path / "m", open_codec("coco", FORMAT))
    given = ("predict", tmp_path / "m", images, "--device", "cpu", "--batch-size", 2)
    assert run("-m", "segkit.cli", *given, "--out", tmp_path / "whole").returncode == 1
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "segkit.cli"]
    report = tmp_path / "report.json"
    command = [sys.executable, *launch, *map(str, given), "--out", str(tmp_path / "out"), "--json", str(report)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **pipes)
    try:
        told = process.communicate(timeout=TIMEOUT_S)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all that it started: its session is its own
    assert process.returncode == 1, told  # a broken input
    assert told.count("broken.png") == 1
    assert told.count("masks in") == 1
    written = json.loads(report.read_text())
    assert (written["done"], len(written["failed"]), written["complete"]) == (10, 1, True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in Path(tmp_path, "out", "_journal").iterdir()) == ["1-of-2.jsonl", "2-of-2.jsonl"]
