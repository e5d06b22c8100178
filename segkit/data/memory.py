"""How much memory is free, for this process and in its container, and how much it took."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell.

    The limit of a container (cgroup v2) counts, of which its file cache can be freed.
    """
    free = _free_of_machine(meminfo)
    limit = _read(cgroup / "memory.max")
    if limit is None or not limit.strip().isdecimal():
        return free
    used = int(_read(cgroup / "memory.current") or 0)
    cache = _entry(_read(cgroup / "memory.stat"), "inactive_file") or 0
    left = max(0, int(limit) - used + cache)
    return left if free is None else min(free, left)


def peak_memory() -> int | None:
    """Bytes that this process has held at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_of_machine(meminfo: Path) -> int | None:
    kib = _entry(_read(meminfo), "MemAvailable:")
    if kib is not None:
        return kib * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _entry(text: str | None, name: str) -> int | None:
    """The number behind `name` in lines of `NAME NUMBER ...`."""
    for line in (text or "").splitlines():
        key, *rest = line.split()
        if key == name and rest:
            return int(rest[0])
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
