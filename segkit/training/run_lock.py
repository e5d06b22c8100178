"""One process at a time works in a run folder: two would write over each other's checkpoints and scores."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segkit.processes import is_main_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
# Of this process. The system would give it the same lock again, and take both when one is let go.
_held: set[Path] = set()


@contextmanager
def only_process_in(run: Path) -> Iterator[None]:
    """Keep other processes out of the run folder `run`, which is made, until the block or this process ends.

    A lock of POSIX: the system lets go of it whatever ends the process, it holds on all machines that mount the folder,
    and unlike one of `flock` it is not handed on to the workers that read data, which outlive a killed process for some
    seconds. Within this process it may be taken again. Of several processes of one run the first takes it for all.

    Raises:
        ValueError: another process has it.
    """
    key = run.resolve()
    if fcntl is None or key in _held or not is_main_process():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    # Never removed: a process that has opened it already would lock a file that others no longer see.
    with open(run / _LOCK, "a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # systems give either
            file.seek(0)
            owner = file.read().decode(errors="replace").strip() or "its number is not known"
            raise ValueError(
                f"{run}: another process works in this run folder ({owner}). Wait until it ends, or end it; what it "
                "has saved can be resumed then."
            ) from None
        except OSError:  # a file system without locks: nobody is kept out
            pass
        with suppress(OSError):  # on a full disk the message above says less
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
