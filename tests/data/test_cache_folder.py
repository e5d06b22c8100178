import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from segkit.data.cache_folder import hold_or_build, remove_unused
from segkit.formats import locks

INDEX = '{"sizes": {"data": 4}, "packed": false, "samples": {}}'


def build(folder):
    (folder / "data").write_bytes(b"abcd")
    (folder / "index.json").write_text(INDEX)


def never(folder):
    raise AssertionError("built again")


def names(home):
    return sorted(p.name for p in home.iterdir())


def slow_build(folder):
    with (folder.parent.parent / "built").open("a") as log:
        log.write("x")
    time.sleep(0.3)
    build(folder)


def hold_in_a_process(home, barrier, answers):
    barrier.wait()
    held = hold_or_build(home, "copy", slow_build)
    answers.put((held.folder / "data").read_bytes())
    barrier.wait()


def test_processes_that_start_together_build_once(tmp_path):
    home = tmp_path / "home"
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=hold_in_a_process, args=(home, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [b"abcd"] * 4
    for process in processes:
        process.join(60)
    assert (tmp_path / "built").read_text() == "x"
    assert names(home) == ["copy"]


def test_without_locks_the_last_rename_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)

    def build_twice(folder):
        build(folder)
        hold_or_build(tmp_path, "copy", build)

    held = hold_or_build(tmp_path, "copy", build_twice)
    assert (held.folder / "data").read_bytes() == b"abcd"
    assert [n for n in names(tmp_path) if not n.endswith(".lock")] == ["copy"]
    assert not remove_unused(held.folder)  # who knows


def test_what_a_killed_builder_left_is_removed_by_the_next(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from segkit.data.cache_folder import hold_or_build\n"
        "def build(folder):\n"
        "    (folder / 'data').write_bytes(b'ab'); print('building', flush=True); time.sleep(60)\n"
        "hold_or_build(Path(sys.argv[1]), 'copy', build)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n"
    # Another builder does not touch what is being built.
    hold_or_build(tmp_path, "other", build).release()
    assert len([n for n in names(tmp_path) if n.endswith(".part")]) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    hold_or_build(tmp_path, "third", build)
    assert [n for n in names(tmp_path) if n.endswith(".part")] == []
    hold_or_build(tmp_path, "copy", build)
    assert names(tmp_path) == ["copy", "other", "third"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "data").write_bytes(b"ab")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        hold_or_build(tmp_path, "copy", fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["data", "index.json"])
def test_a_damaged_folder_is_made_anew(tmp_path, damage):
    hold_or_build(tmp_path, "copy", build).release()
    (tmp_path / "copy" / damage).write_text('{"siz')
    held = hold_or_build(tmp_path, "copy", build)
    assert (held.folder / "data").read_bytes() == b"abcd"
    assert (held.folder / "index.json").read_text() == INDEX


def test_only_what_nobody_holds_is_removed(tmp_path):
    one, two = (hold_or_build(tmp_path, "copy", build) for _ in range(2))
    one.release()
    assert not remove_unused(tmp_path / "copy")
    two.release()
    assert remove_unused(tmp_path / "copy")
    assert names(tmp_path) == []
    assert not remove_unused(tmp_path / "copy")


def test_a_temporary_folder_goes_with_its_last_user(tmp_path):
    one = hold_or_build(tmp_path, "copy", build, temporary=True)
    two = hold_or_build(tmp_path, "copy", never, temporary=True)
    one.release()
    assert names(tmp_path) == ["copy"]
    pid = os.fork()
    if pid == 0:  # a fork ends without taking the folder along
        two.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert names(tmp_path) == ["copy"]
    del two
    assert names(tmp_path) == []


def test_a_temporary_folder_goes_when_the_process_ends(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.data.test_cache_folder import build\n"
        "from segkit.data.cache_folder import hold_or_build\n"
        "held = hold_or_build(Path(sys.argv[1]), 'copy', build, temporary=True); print(held.folder.is_dir())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert names(tmp_path) == []
