"""Locks on files, by which processes wait for each other; they end with the process that holds them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock file, which is there only as long as somebody does; yields whether it is held."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = lock(descriptor, exclusive=True, wait=wait)
        # Its last holder has removed it: those who come now lock another file of the same name.
        if not held or is_same(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield held
    finally:
        if held:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def lock(descriptor: int, exclusive: bool, wait: bool) -> bool:
    """Lock an open file; False if another holds it or there are no locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def held_elsewhere(descriptor: int) -> bool:
    """Try to lock an open file for this process: True if another holds it; False too where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
