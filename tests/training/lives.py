"""A run that is killed again and again: `python -m tests.training.lives CONFIG RUN`.

Each life is a fork of this process, which has imported everything. It ends itself at an event that is drawn: a
training step, a validation step, a part of a checkpoint that is written, a file that reaches the disk, or one that
takes the place of another. The events are printed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from segkit.cli import main
from segkit.processes import be_parent, end_with_parent
from segkit.training import checkpoint
from segkit.training.module import SegmentationModule

KILLS = 20
CHUNKS = 8


class Events:
    """Counts events of one kind, `step` or `file`, down; at zero `end` is called."""

    def __init__(self, kind, left, end):
        self.kind, self.left, self.end = kind, left, end

    def count(self, kind, event):
        self.left -= kind == self.kind
        if self.left == 0 and kind == self.kind:
            os.write(1, f"{event}\n".encode())
            self.end()

    def around(self, kind, step):
        def call(*given, **named):
            self.count(kind, f"before {step.__name__}")
            found = step(*given, **named)
            self.count(kind, f"after {step.__name__}")
            return found

        return call


class Slowly:
    """A file that is written in parts, each of which reaches the system before the next."""

    def __init__(self, file, events):
        self.file, self.events = file, events
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, content):
        size = -(-len(content) // CHUNKS)
        for start in range(0, len(content), size):
            self.file.write(content[start : start + size])
            self.file.flush()
            self.events.count("file", "within a checkpoint")


def live(arguments, end, kind="step", left=0):
    """Exit code of a process that ends at the event number `left`; at 0 it lives on."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.setpgid(0, 0)
    end_with_parent()  # a test that waited too long ends that one alone
    events = Events(kind, left, end)
    writing_whole = checkpoint.writing_whole

    @contextmanager
    def writing_slowly(path):
        with writing_whole(path) as file:
            yield Slowly(file, events)

    checkpoint.writing_whole = writing_slowly
    SegmentationModule.training_step = events.around("step", SegmentationModule.training_step)
    SegmentationModule.validation_step = events.around("step", SegmentationModule.validation_step)
    os.fsync, os.replace = events.around("file", os.fsync), events.around("file", os.replace)
    main(arguments)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def terminated():
    """With the workers, as by a scheduler."""
    subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"])


def run(config, out):
    be_parent()
    rng = random.Random(0)
    assert live(["train", config, "--out", out], killed, "file", 3) == -signal.SIGKILL
    for number in range(1, KILLS):
        saved = Path(out, "config.yaml")
        saved.write_text(re.sub("workers: .*", f"workers: {number % 4 // 3 * 2}", saved.read_text()))
        kind, most = rng.choice([("step", 4), ("file", 33)])
        assert live(["train", "--resume", out], killed, kind, rng.randint(1, most)) == -signal.SIGKILL, number
    assert live(["train", "--resume", out], terminated, left=2) == 75
    assert live(["train", "--resume", out], killed) == 0


if __name__ == "__main__":
    run(*sys.argv[1:])
