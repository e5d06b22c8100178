"""Two processes that go on with one run at once: the second is told so, whatever ended the first before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from segkit.training.fit import fit
from segkit.training.run_lock import only_process_in
from tests.scenes import FORMATS, write_set
from tests.test_cli import segkit, write_config
from tests.training.test_fit import small_model

# Holds the lock of a folder until its standard input ends; so does, without a claim to it, a child.
HOLDER = """
import os, sys
from pathlib import Path
from segkit.training.run_lock import only_process_in
with only_process_in(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(run):
    """(process that works in `run`, number of its child)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], env=environment, **pipes) as process:
        yield process, int(process.stdout.readline())


def is_free(run):
    """Whether another process could work in `run`."""
    code = "import sys; from pathlib import Path; from segkit.training.run_lock import only_process_in as f"
    code += "\nwith f(Path(sys.argv[1])): pass"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return (
        subprocess.run([sys.executable, "-c", code, str(run)], env=environment, stderr=subprocess.PIPE).returncode == 0
    )


def test_the_second_process_is_told_who_was_first(tmp_path, capsys):
    config, run = write_config(tmp_path, "binary"), tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes(config.read_bytes())
    with another_process(run) as (process, _):
        for arguments in (("--resume", run), (config, "--out", run)):
            assert segkit("train", *arguments) == 2
            said = capsys.readouterr().err
            assert f"{run}: another process works in this run folder (process {process.pid} on " in said
        train = write_set(tmp_path / "more", FORMATS["binary"], 2)
        with pytest.raises(ValueError, match="another process works in this run folder"):
            fit(small_model(train.format), train, out=run, epochs=1, batch_size=2, workers=0, device="cpu")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.yaml"]
    assert segkit("train", "--resume", run) == 0


def test_a_killed_process_keeps_nobody_out_though_its_workers_live_on(tmp_path):
    with another_process(tmp_path) as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # is still there
        with only_process_in(tmp_path):
            assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_what_has_a_folder_may_take_it_again(tmp_path):
    with only_process_in(tmp_path / "run"):
        with only_process_in(tmp_path / "run" / ".." / "run"):
            pass
        assert not is_free(tmp_path / "run")
    assert is_free(tmp_path / "run")


def test_the_first_of_several_processes_has_it_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with another_process(tmp_path), only_process_in(tmp_path):
        pass
