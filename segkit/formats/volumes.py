"""One door to volumes, whatever holds them: a NIfTI file, a folder with a DICOM series, a multi-frame DICOM file."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from segkit.formats.dicom_files import folder_sources, folder_stamp, header_of, is_dicom, without_dicom_suffix
from segkit.formats.dicom_series import decode_series, open_series
from segkit.formats.grids import Grid, difference
from segkit.formats.nifti_slices import (
    Volume,
    decode_nifti,
    grid_header,
    nifti_case_name,
    nifti_geometry,
    nifti_labels_header,
)

Stamp = tuple
# One image and its labels are always kept, since slices of a case are usually asked for one after the other; of small
# volumes, or of several files with a band each, as many as fit.
_KEPT_ALWAYS = 2
_KEPT_BYTES = 256 * 2**20
_volumes: OrderedDict[Stamp, Future[Volume]] = OrderedDict()
_in_use: Counter[Stamp] = Counter()
_lock = threading.Lock()


def is_volume(path: str | Path) -> bool:
    """Whether a file or folder is read as a volume."""
    return volume_name(path) is not None


def volume_name(path: str | Path) -> str | None:
    """Name of a volume without the suffix of its file; None for what is no volume."""
    path = Path(path)
    name = nifti_case_name(path)
    if name is not None:
        return name
    if path.is_dir():
        return path.resolve().name
    header = header_of(path) if is_dicom(path) else None
    return without_dicom_suffix(path.name) if header is not None and header.count > 1 else None


def join_series(paths: Iterable[Path]) -> Iterator[Path]:
    """The same paths, in which a folder stands, once, for the slices of the DICOM series in it.

    DICOM files without pictures are left out: directories (DICOMDIR), contours, segmentations, reports.
    """
    sources: dict[Path, dict[Path, Path]] = {}
    seen: set[Path] = set()
    for path in paths:
        if not is_dicom(path):
            yield path
            continue
        if path.parent not in sources:
            header = header_of(path)
            if header is not None and not header.is_slice:
                # Not through the folder, which may hold a hundred thousand radiographs.
                if header.count:
                    yield path
                continue
            sources[path.parent] = folder_sources(path.parent)
        source = sources[path.parent].get(path)
        if source is not None and source not in seen:
            seen.add(source)
            yield source


def volume_shape(path: str | Path) -> tuple[int, ...]:
    """(x, y, z) or (x, y, z, bands) from headers alone.

    Raises:
        ValueError: names the file when it is no volume, or says what is wrong with a series.
    """
    grid, bands = _geometry(Path(path), volume_stamp(Path(path)))
    return grid.shape if bands == 1 else (*grid.shape, bands)


def volume_grid(path: str | Path) -> Grid:
    """Where the voxels lie, from headers alone."""
    return _geometry(Path(path), volume_stamp(Path(path)))[0]


def volume_files(path: Path) -> list[Path]:
    """The files that hold a volume: itself, or those of the slices of a series, in their order."""
    return _slice_files(path, folder_stamp(path)) if path.is_dir() else [path]


def load_volume(path: str | Path) -> Volume:
    """The decoded volume; the last ones are kept, so that slices of one case cost one decoding per process.

    Several threads that ask for one volume wait for one decoding.

    Raises:
        ValueError: names the file when it is missing, cut short or no volume.
    """
    path = Path(path)
    key = volume_stamp(path)
    with _lock:
        known = _volumes.get(key)
        future = known if known is not None else _volumes.setdefault(key, Future())
        _volumes.move_to_end(key)
    if known is None:
        try:
            future.set_result(_decode(path))
        except BaseException as error:
            with _lock:
                _volumes.pop(key, None)
            future.set_exception(error)
        _let_go()
    return future.result()


@contextmanager
def kept(paths: Iterable[str | Path]) -> Iterator[None]:
    """Volumes of which many slices are asked for stay decoded, however large they are and whatever else is read."""
    keys = [volume_stamp(Path(path)) for path in paths]
    with _lock:
        _in_use.update(keys)
    try:
        yield
    finally:
        with _lock:
            _in_use.subtract(keys)
        _let_go()


def misplaced(path: str | Path, like: str | Path) -> str | None:
    """How the voxels of one volume lie beside those of another, see `grids.difference`; None where they coincide."""
    path, like = Path(path), Path(like)
    return _misplaced(path, volume_stamp(path), like, volume_stamp(like))


def labels_header(path: str | Path) -> bytes:
    """Header of a NIfTI file for labels of a volume, stored as that is; without its voxels."""
    return _labels_header(Path(path), volume_stamp(Path(path)))


def volume_stamp(path: Path) -> Stamp:
    """Differs once the file, or a file of the series, has been written anew."""
    try:
        facts = os.stat(path)
    except OSError:
        raise ValueError(f"{path}: no such file.") from None
    if stat.S_ISDIR(facts.st_mode):
        return folder_stamp(path)
    # Asked several times for each slice, so nothing that takes longer, such as resolving links.
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size


def _decode(path: Path) -> Volume:
    return decode_nifti(path) if nifti_case_name(path) is not None else decode_series(open_series(path))


@lru_cache(maxsize=4096)
def _geometry(path: Path, stamp: Stamp) -> tuple[Grid, int]:
    """Grid and number of bands; of one reading of the header, however many slices ask."""
    return nifti_geometry(path) if nifti_case_name(path) is not None else (open_series(path).grid, 1)


@lru_cache(maxsize=256)
def _slice_files(path: Path, stamp: Stamp) -> list[Path]:
    return [frame.path for frame in open_series(path).frames]


@lru_cache(maxsize=16)
def _labels_header(path: Path, stamp: Stamp) -> bytes:
    is_nifti = nifti_case_name(path) is not None
    return nifti_labels_header(path) if is_nifti else grid_header(_geometry(path, stamp)[0])


@lru_cache(maxsize=4096)
def _misplaced(path: Path, stamp: Stamp, like: Path, like_stamp: Stamp) -> str | None:
    return difference(_geometry(path, stamp)[0], _geometry(like, like_stamp)[0])


def _forget_unfinished() -> None:
    """In a process that was forked: the threads that decode volumes, or hold the lock, stayed behind."""
    global _lock
    _lock = threading.Lock()
    for key in [key for key, future in _volumes.items() if not future.done()]:
        del _volumes[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_unfinished)


def _let_go() -> None:
    """Forget the volumes that were asked for longest ago; those in use and those that are being decoded stay."""
    with _lock:
        for key in [key for key, users in _in_use.items() if users == 0]:
            del _in_use[key]
        done = [key for key, future in _volumes.items() if future.done()]
        held = sum(_volumes[key].result().array.nbytes for key in done)
        for key in done[:-_KEPT_ALWAYS]:
            if held <= _KEPT_BYTES:
                break
            if key in _in_use:
                continue
            held -= _volumes.pop(key).result().array.nbytes
