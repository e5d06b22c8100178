"""Folders that are made once and whole, whichever process comes first, and removed when nobody uses them.

A folder is built under a hidden name and renamed. Builders of one folder wait for each other on a lock file; users
hold a shared lock on the index inside, which is how others know that it is in use. Where a file system knows no
locks, the last rename wins, and nothing is removed that might be in use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segkit.data.cache_files import INDEX, read_index

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PART = ".part"


class Held:
    """A folder in use by this process. Not picklable: processes started by this one rely on their parent.

    Args:
        temporary: remove the folder when this object goes, or this process ends, and no other process uses it.
    """

    def __init__(self, folder: Path, descriptor: int, temporary: bool) -> None:
        self.folder = folder
        self._release = weakref.finalize(self, _release, folder, descriptor, temporary, os.getpid())

    def release(self) -> None:
        """Use it no longer."""
        self._release()


def hold_or_build(home: Path, name: str, build: Callable[[Path], None], temporary: bool = False) -> Held:
    """The folder `home`/`name`, made by `build` unless it is there; one of several processes builds.

    Args:
        build: called with an empty folder, in which it writes an index last, see `read_index`.
        temporary: see `Held`.
    """
    home.mkdir(parents=True, exist_ok=True)
    target = home / name
    held = _hold(target, temporary)
    if held is not None:
        return held
    with _locked(home / f".{name}.lock") as locked:
        held = _hold(target, temporary)  # another process has built it meanwhile
        if held is not None:
            return held
        if locked:
            _remove_parts(home, name)
        part = home / f".{name}.{uuid.uuid4().hex[:12]}{_PART}"
        part.mkdir()
        try:
            build(part)
            held = _hold(target, temporary)  # where there are no locks, another may have been faster
            if held is not None:
                return held
            descriptor = _open_shared(part / INDEX)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one
            part.rename(target)
            return Held(target, descriptor, temporary)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_unused(folder: Path) -> bool:
    """Remove a folder that no process holds; True if it was removed."""
    try:
        descriptor = os.open(folder / INDEX, os.O_RDWR)
    except OSError:
        return False
    try:
        if not _lock(descriptor, exclusive=True, wait=False):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)


def _hold(folder: Path, temporary: bool) -> Held | None:
    if read_index(folder) is None:
        return None
    try:
        descriptor = _open_shared(folder / INDEX)
    except OSError:
        return None
    if not _is_same(descriptor, folder / INDEX):  # removed between the two lines above
        os.close(descriptor)
        return None
    return Held(folder, descriptor, temporary)


def _open_shared(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)  # it may be another user's
    _lock(descriptor, exclusive=False, wait=True)
    return descriptor


def _release(folder: Path, descriptor: int, temporary: bool, process: int) -> None:
    if os.getpid() != process:
        return  # a fork of the process that holds it
    if temporary and _lock(descriptor, exclusive=True, wait=False):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _remove_parts(home: Path, name: str) -> None:
    """What builders left that were killed: of `name`, whose lock is ours, and of others whose lock is free."""
    for part in home.glob(f".*{_PART}"):
        owner = part.name[1:].rsplit(".", 2)[0]
        if owner == name:
            shutil.rmtree(part, ignore_errors=True)
            continue
        with _locked(home / f".{owner}.lock", wait=False) as locked:
            if locked:
                shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock file, which is there only as long as somebody does; yields whether it is held."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = _lock(descriptor, exclusive=True, wait=wait)
        # Its last holder has removed it: those who come now lock another file of the same name.
        if not locked or _is_same(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield locked
    finally:
        if locked:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(descriptor: int, exclusive: bool, wait: bool) -> bool:
    """Lock an open file; False if another holds it or there are no locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
