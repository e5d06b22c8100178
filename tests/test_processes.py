from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segkit.processes import free_run, is_main_process, started_by_launcher

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}
FAMILY = """
import os, subprocess, sys, time
from segkit.processes import be_parent, end_with_parent
if len(sys.argv) > 1:
    end_with_parent()
    print("watching", flush=True)
else:
    be_parent()
    print(subprocess.Popen([sys.executable, "-c", os.environ["FAMILY"], "child"]).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, (2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, (4, 2)),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_launchers_say_how_many_processes_there_are(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_by_launcher() == expected


def test_machines_with_different_numbers_of_processes_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "5")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(ValueError, match="5 processes on 2 machines"):
        started_by_launcher()


@pytest.mark.parametrize("number", ["RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"])
def test_one_process_is_the_first(monkeypatch, number):
    monkeypatch.setenv(number, "0")
    assert is_main_process()
    monkeypatch.setenv(number, "1")
    assert not is_main_process()


def test_processes_of_others_take_the_name_of_the_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    monkeypatch.setenv("SEGKIT_RUN", "")
    assert free_run("a") == Path("runs/a-2")
    monkeypatch.setenv("LOCAL_RANK", "1")  # started by the one that chose
    assert free_run("a") == Path("runs/a-2")
    monkeypatch.delenv("SEGKIT_RUN")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert free_run("a") == Path("runs/a")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_a_process_ends_with_the_one_that_started_it():
    environment = {**os.environ, "FAMILY": FAMILY, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "watching\n"
        assert runs(child)
        parent.kill()
        parent.wait()
        until = time.monotonic() + 60  # far more than it takes, and far less than the child would sleep
        while runs(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert not runs(child)
    finally:
        for process in (parent.pid, child):
            if runs(process):
                os.kill(process, signal.SIGKILL)


def runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
