"""Jobs on a Ray of this machine: two workers, of which one is killed; a task that kills all; stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from segkit import cli
from segkit.formats import files
from segkit.formats.codecs import open_codec
from segkit.inference import ray_jobs
from segkit.inference.journal import JOURNAL, read_journals
from segkit.inference.predictor import Predictor
from segkit.inference.ray_jobs import make_tasks, predict_on_ray
from segkit.models.bundle import save_bundle
from segkit.training.preemption import Preempted
from tests.inference.test_jobs import FORMAT, contents, model, write_images

ray = pytest.importorskip("ray", reason="needs segkit[ray]")
pytest.importorskip("ray.data", reason="needs segkit[ray]")
BROKEN = ["s000-broken.png", "s007-broken.png", "s014-broken.png"]
CODEC = open_codec("index_png", FORMAT)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for tries_left in (3, 2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
                configure_logging=False,
                _system_config={"worker_register_timeout_seconds": 600, "health_check_timeout_ms": 120_000},
            )
            break
        except Exception as error:  # Ray gives itself 30 s to start, too few on a busy machine
            if tries_left == 0 or "timed out during startup" not in str(error):
                raise
    # Workers need not find this module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Images with broken ones among them, the bundle, and what one process makes of them."""
    root = tmp_path_factory.mktemp("whole")
    images = write_images(root / "in", 57, broken=3)
    save_bundle(model(), root / "m", CODEC)
    report = Predictor(root / "m", device="cpu").predict_files([images], root / "out", objects=True)
    assert sorted(Path(file).name for file, _ in report.failed) == BROKEN
    return root


def worker_that(does):
    """A class of workers that call `does(worker, item)` before a mask is written."""

    class Worker(ray_jobs._Worker):
        def _opened(self):
            work = super()._opened()
            write = work.write

            def written(item, answer):
                does(self, item)
                return write(item, answer)

            work.write = written
            return work

    return Worker


def killing(stem, marker=None):
    """Kills the worker within the mask of `stem`, as long as `marker` is there, which it takes away."""

    def kill(worker, item):
        if item.inputs[0].stem != stem or (marker is not None and not marker.exists()):
            return
        if marker is not None:
            marker.unlink()
        with files.writing_whole(worker._recipe.out / f"{stem}.png") as file:
            file.write(b"half a mask")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    return worker_that(kill)


def test_a_killed_worker_changes_nothing(cluster, whole, tmp_path, monkeypatch):
    marker = tmp_path / "not killed yet"
    marker.touch()
    monkeypatch.setattr(ray_jobs, "_Worker", killing("s030", marker))
    told = []
    report = predict_on_ray(
        whole / "m", [whole / "in"], tmp_path / "out", workers=2, objects=True, progress=lambda *now: told.append(now)
    )
    assert not marker.exists()
    assert contents(tmp_path / "out") == contents(whole / "out")  # half a mask would be found too
    assert (report.done, report.complete) == (57, True)
    assert sorted(Path(file).name for file, _ in report.failed) == BROKEN
    assert told[0] == (0, 60)
    assert told[-1] == (60, 60)
    journal = (tmp_path / "out" / JOURNAL).read_text().splitlines()
    assert sum('"batch"' in line for line in journal[1:]) == 15  # each once


def test_what_kills_every_worker_is_given_up_after_all_others_are_done(cluster, whole, tmp_path, monkeypatch, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    monkeypatch.setattr(ray_jobs, "_Worker", killing("s030"))
    monkeypatch.setattr(ray_jobs, "_MOST_TRIES", 1)
    with pytest.raises(ValueError, match=r"s0(2\d|30).png: with some of .* worker was killed, 1 times.*--resume"):
        predict_on_ray(whole / "m", [whole / "in"], out, workers=1, objects=True)
    past = read_journals([out / JOURNAL])
    assert past.finished is None
    assert len(past.entries) == 14
    monkeypatch.undo()
    given = ("--out", str(out), "--objects", "--resume", "--json", str(report))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(whole / "m"), str(whole / "in"), "--ray", "auto", "--workers", "1", *given])
    assert stopped.value.code == 1
    assert contents(out) == contents(whole / "out")
    told = json.loads(report.read_text())
    assert (told["done"], told["complete"], len(told["failed"])) == (57, True, 3)
    said = capsys.readouterr()
    assert "57 masks in" in said.out
    assert sum("broken" in line for line in said.err.splitlines()) == 3


def test_a_signal_stops_the_workers_and_one_process_goes_on(cluster, whole, tmp_path, monkeypatch):
    def wait(worker, item):
        while item.number >= 20 and not ray.get(worker._recipe.desk.is_stopped.remote()):
            time.sleep(0.05)

    def stop(done, total):
        if done:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray_jobs, "_Worker", worker_that(wait))
    out = tmp_path / "out"
    with pytest.raises(Preempted):
        predict_on_ray(whole / "m", [whole / "in"], out, workers=1, objects=True, progress=stop)
    assert 0 < len(read_journals([out / JOURNAL]).entries) < 15
    Predictor(whole / "m", device="cpu").predict_files([whole / "in"], out, objects=True, resume=True)
    assert contents(out) == contents(whole / "out")


def test_tasks_hold_every_batch_once_and_each_worker_gets_some():
    class Piece(list):
        """As long as an item with so many images."""

    batches = [(number, [Piece(range(4))] * 2) for number in range(40)] + [
        (40, [Piece(range(200))]),
        (41, [Piece("a")]),
    ]
    tasks = make_tasks(batches, workers=1)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert [batch for task in tasks for batch in task.batches] == batches
    assert [len(task.batches) for task in tasks] == [8, 8, 8, 8, 8, 1, 1]  # of 64 images, or what is more
    assert len(make_tasks(batches[:40], workers=10)) == 40
    assert make_tasks([], workers=2) == []
