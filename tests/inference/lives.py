"""A job that is killed and goes on: `python -m tests.inference.lives SEED ARGUMENTS OF PREDICT...`.

Each life is a fork of this process, which has imported everything. Three kill themselves by SIGKILL, each at an event
that is drawn: within a file that is written, before or after one takes its place, within a line of the journal. The
last lives on; its exit code is that of this process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import contextmanager

from segkit.cli import main
from segkit.formats import files
from segkit.inference.journal import Journal

# Of each kind of event, which numbers are drawn from.
KILLS = {"file": (8, 60), "line": (2, 4), "replace": (4, 40)}


class Events:
    """Counts events of one kind down; at zero this process is killed."""

    def __init__(self, kind, left):
        self.kind, self.left = kind, left

    def count(self, kind):
        self.left -= kind == self.kind
        if self.left == 0 and kind == self.kind:
            os.write(1, f"killed within {kind}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


def live(arguments, kind="", left=-1):
    """Exit code of one life."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    events = Events(kind, left)
    writing_whole, replace, add = files.writing_whole, os.replace, Journal._add

    @contextmanager
    def writing_slowly(path):
        with writing_whole(path) as file:
            yield Slowly(file, events)

    def counted_replace(*given):
        events.count("replace")
        replace(*given)
        events.count("replace")

    def add_slowly(journal, *given):
        journal._file = Slowly(journal._file, events, "line")
        add(journal, *given)
        journal._file = journal._file.file

    files.writing_whole, os.replace, Journal._add = writing_slowly, counted_replace, add_slowly
    main(arguments)


class Slowly:
    """A file of which each half that is written reaches the system before the next."""

    def __init__(self, file, events, kind="file"):
        self.file, self.events, self.kind = file, events, kind
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, content):
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            self.file.write(part)
            self.file.flush()
            self.events.count(self.kind)


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[1]))
    arguments = ["predict", *sys.argv[2:], "--resume"]
    for kind in rng.sample(list(KILLS), len(KILLS)):
        assert live(arguments, kind, rng.randint(*KILLS[kind])) == -signal.SIGKILL, kind
    sys.exit(live(arguments))
