"""The decoded copy of a data set, on disk or in shared memory: made once, mapped by every process that reads it.

Decoding a JPEG and a PNG costs more than all else that happens to a training sample. The copy holds images and planes
as `MaskDataset.read` gives them, at the stored size: scores are counted at that size, and one copy serves every
`data.resize` and every crop. Planes of overlapping classes are packed to bits.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.data.cache_files import CachedSample, SampleFiles, SampleWriter, read_index
from segkit.data.cache_folder import Held, hold_or_build, remove_unused
from segkit.data.memory import available_memory
from segkit.data.origin import Origin, is_outdated
from segkit.data.sample import Sample

log = logging.getLogger("segkit")

PLACES = ("disk", "ram")
GIB = 2**30
# tmpfs: files that are memory.
SHARED_MEMORY = Path("/dev/shm")
_SHARE_OF_DISK, _SHARE_OF_MEMORY = 0.9, 0.5
_GIVEN = "the bound given by `cache_gib`"


@dataclass(frozen=True)
class Source:
    """Samples that are to be copied.

    Attributes:
        origin: tells what they are read from, as it is at the time of the call.
        stems: their names, in order.
        fill: reads all of them and hands each to the function it is called with, from any thread.
        estimate_bytes: tells about how large all are, decoded.
        pack: whether their planes are bits, see `packed.pack_planes`.
    """

    origin: Callable[[], Origin]
    stems: Sequence[str]
    fill: Callable[[Callable[[Sample], None]], None]
    estimate_bytes: Callable[[], int]
    pack: bool


class NoRoom(ValueError):
    """The decoded samples are larger than they may be."""


class DecodedCopy:
    """Samples by stem, mapped into memory. Picklable for workers, which live no longer than the process it is from.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, held: Held) -> None:
        self.folder = held.folder
        self._files, self._held = SampleFiles(held.folder), held

    def read(self, stem: str) -> CachedSample:
        """One sample; nothing is read from disk before its arrays are looked at."""
        return self._files.read(stem)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held": None}


def decoded_copy(
    source: Source, place: str = "disk", home: str | Path | None = None, max_gib: float | None = None
) -> DecodedCopy:
    """The copy of `source`, made now unless one of the same origin is there.

    Args:
        place: `disk`, or `ram` for shared memory, which is free again when the last process that uses the copy ends.
            Where there is no shared memory, or too little, it goes to disk, with a warning.
        home: folder of all copies on disk; default `default_home()`.
        max_gib: largest size; default nine tenths of the free space on disk, or half of the free memory.

    Raises:
        ValueError: a wrong place, no room, a sample that cannot be read, or files that change while they are read.
    """
    if place not in PLACES:
        raise ValueError(f"a cache in {place!r}: expected {' or '.join(PLACES)}.")
    if max_gib is not None and not max_gib > 0:
        raise ValueError(f"a cache of {max_gib} GiB: expected more than 0.")
    disk = Path(home).expanduser() if home is not None else default_home()
    if place == "ram":
        try:
            return _copy_in_memory(source, max_gib)
        except _NoSharedMemory as reason:
            log.warning("%s; the decoded copy goes to %s instead.", reason, disk)
    return _copy_on_disk(source, disk, max_gib)


def default_home() -> Path:
    """`$SEGKIT_CACHE`, or `segkit` in the user's cache folder."""
    given = os.environ.get("SEGKIT_CACHE")
    if given:
        return Path(given).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "segkit")
    except RuntimeError:
        raise ValueError(
            "there is no home folder for a cache. Say where with `data.cache_dir` or $SEGKIT_CACHE."
        ) from None


class _NoSharedMemory(Exception):
    """There is no shared memory, or too little."""


@dataclass(frozen=True)
class _Bound:
    """How large a copy may be, why, and what else a user can do than raise it."""

    size: float
    why: str
    way_out: str


def _copy_on_disk(source: Source, home: Path, max_gib: float | None) -> DecodedCopy:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{home}: no folder for a cache can be made there ({error.strerror}). Name another with `data.cache_dir` "
            "or $SEGKIT_CACHE, or do without: `data.cache=off`."
        ) from None
    origin = source.origin()

    def build(folder: Path) -> None:
        _remove_outdated(home, origin)
        size, why = shutil.disk_usage(folder).free * _SHARE_OF_DISK, f"nine tenths of what is free in {home}"
        if max_gib is not None and max_gib * GIB < size:
            size, why = max_gib * GIB, _GIVEN
        bound = _Bound(size, why, "take another disk with `data.cache_dir`")
        _write(folder, source, origin, source.estimate_bytes(), bound)

    return DecodedCopy(hold_or_build(home, origin.name, build))


def _copy_in_memory(source: Source, max_gib: float | None) -> DecodedCopy:
    if not os.access(SHARED_MEMORY, os.W_OK):
        raise _NoSharedMemory(f"there is no shared memory at {SHARED_MEMORY}")
    # Of one user, and read by nobody else: everybody may write into shared memory.
    home = SHARED_MEMORY / f"segkit-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():
        raise _NoSharedMemory(f"{home} belongs to another user")
    origin = source.origin()

    def build(folder: Path) -> None:
        for other in home.glob("[!.]*"):
            remove_unused(other)  # of processes that were killed
        size, free = source.estimate_bytes(), shutil.disk_usage(folder).free
        memory = available_memory()
        most = (memory if memory is not None else free) * _SHARE_OF_MEMORY
        largest, why = (most, "half of the free memory") if max_gib is None else (max_gib * GIB, _GIVEN)
        if largest >= size > free:
            raise _NoSharedMemory(f"{SHARED_MEMORY} has {free / GIB:.1f} GiB free for samples of {size / GIB:.1f} GiB")
        try:
            _write(folder, source, origin, size, _Bound(largest, why, "use `data.cache=disk`"))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _NoSharedMemory(f"{SHARED_MEMORY} is full") from None

    return DecodedCopy(hold_or_build(home, origin.name, build, temporary=True))


def _write(folder: Path, source: Source, origin: Origin, estimate: int, bound: _Bound) -> None:
    """Write all samples and their index, or refuse: at once by the estimate, or where it was too low."""
    total = len(source.stems)

    def check_room(size: float, done: int) -> None:
        if size > bound.size:
            raise NoRoom(
                f"{origin.images}: {total} decoded samples take about {_amount(size / done * total)}, but the "
                f"cache may take {_amount(bound.size)} ({bound.why}). Allow more with `data.cache_gib`, "
                f"{bound.way_out}, or do without: `data.cache=off`."
            )

    check_room(estimate, total)
    writer = SampleWriter(folder, source.pack, check_room)
    try:
        source.fill(writer.add)
        if source.origin().fingerprint != origin.fingerprint:
            raise ValueError(f"{origin.images}: files changed while they were read. Start again when they stay.")
        writer.finish(source.stems, {"origin": origin.to_dict()})
    finally:
        writer.close()


def _amount(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def _remove_outdated(home: Path, origin: Origin) -> None:
    """Remove copies of the same images that no longer agree with the files, unless they are in use."""
    for other in home.glob(f"{glob.escape(origin.family)}*"):
        index = read_index(other) if other.name != origin.name else None
        if index is not None and "origin" in index and is_outdated(index["origin"]):
            remove_unused(other)
