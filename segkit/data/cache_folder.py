"""Folders that are made once and whole, whichever process comes first, and removed when nobody uses them.

A folder is built under a hidden name and renamed. Builders of one folder wait for each other on a lock file; users
hold a shared lock on the index inside, which is how others know that it is in use. Where a file system knows no
locks, the last rename wins, and nothing is removed that might be in use.
"""

from __future__ import annotations

import os
import shutil
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path

from segkit.data.cache_files import INDEX, read_index
from segkit.formats.locks import is_same, lock, locked

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
    with locked(home / f".{name}.lock") as held_lock:
        held = _hold(target, temporary)  # another process has built it meanwhile
        if held is not None:
            return held
        if held_lock:
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
        if not lock(descriptor, exclusive=True, wait=False):
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
    if not is_same(descriptor, folder / INDEX):  # removed between the two lines above
        os.close(descriptor)
        return None
    return Held(folder, descriptor, temporary)


def _open_shared(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)  # it may be another user's
    lock(descriptor, exclusive=False, wait=True)
    return descriptor


def _release(folder: Path, descriptor: int, temporary: bool, process: int) -> None:
    if os.getpid() != process:
        return  # a fork of the process that holds it
    if temporary and lock(descriptor, exclusive=True, wait=False):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _remove_parts(home: Path, name: str) -> None:
    """What builders left that were killed: of `name`, whose lock is ours, and of others whose lock is free."""
    for part in home.glob(f".*{_PART}"):
        owner = part.name[1:].rsplit(".", 2)[0]
        if owner == name:
            shutil.rmtree(part, ignore_errors=True)
            continue
        with locked(home / f".{owner}.lock", wait=False) as held_lock:
            if held_lock:
                shutil.rmtree(part, ignore_errors=True)
