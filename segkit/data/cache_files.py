"""Decoded samples in three files: one of image bytes, one of planes, and an index that says what lies where."""

from __future__ import annotations

import json
import mmap
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.packed import PackedPlanes, pack_planes, unpacked
from segkit.data.sample import Sample

INDEX = "index.json"
_IMAGES, _PLANES = "images.bin", "planes.bin"
# Any dtype may be read in place at such an offset, and no two samples share a cache line.
_ALIGNED = 64


class CachedSample(Sample):
    """A sample whose image and planes lie in a memory-mapped file; only what is looked at is read.

    Arrays are read-only. `stored_planes` are sliced before they are unpacked; `planes` unpacks them whole, once.
    """

    def __init__(
        self,
        stem: str,
        image: np.ndarray,
        stored_planes: np.ndarray | PackedPlanes,
        spacing_mm: tuple[float, ...] | None,
    ) -> None:
        self.stem, self.image, self.spacing_mm = stem, image, spacing_mm
        self._stored_planes = stored_planes

    @property
    def stored_planes(self) -> np.ndarray | PackedPlanes:
        return self._stored_planes

    @cached_property
    def planes(self) -> np.ndarray:  # type: ignore[override]
        """(H, W, P)."""
        return unpacked(self._stored_planes)


class SampleWriter:
    """Writes samples in any order, from several threads.

    Args:
        folder: where the files are made.
        pack: store planes as bits; they hold 0, 1 and ignored alone.
        check_room: called with the bytes written so far and the number of samples, after each.
    """

    def __init__(self, folder: Path, pack: bool, check_room: Callable[[int, int], None]) -> None:
        self._folder, self._pack, self._check_room = folder, pack, check_room
        self._files = {name: (folder / name).open("wb") for name in (_IMAGES, _PLANES)}
        self._rows: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        planes = pack_planes(sample.planes, sample.stem) if self._pack else None
        stored, known = (sample.planes, None) if planes is None else (planes.bits, planes.known)
        with self._lock:
            self._rows[sample.stem] = [
                sample.image.dtype.name,
                sample.image.shape,
                self._append(_IMAGES, sample.image),
                stored.dtype.name,
                sample.planes.shape,
                self._append(_PLANES, stored),
                None if known is None else self._append(_PLANES, known),
                sample.spacing_mm,
            ]
            self._check_room(sum(file.tell() for file in self._files.values()), len(self._rows))

    def finish(self, order: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Write the index, with the samples in this order and `facts` beside them."""
        sizes = {name: file.tell() for name, file in self._files.items()}
        self.close()
        index = {
            **facts,
            "sizes": sizes,
            "packed": self._pack,
            "columns": "image dtype, shape, offset; planes dtype, shape, offset; offset of known bits; spacing_mm",
            "samples": {stem: self._rows[stem] for stem in order},
        }
        (self._folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _append(self, name: str, array: np.ndarray) -> int:
        """Write an array; returns the byte at which it begins."""
        file = self._files[name]
        file.write(bytes(-file.tell() % _ALIGNED))
        start = file.tell()
        file.write(np.ascontiguousarray(array).data)
        return start


class SampleFiles:
    """Reads what `SampleWriter` wrote. Picklable; every process maps the files when it first reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, list[Any]] | None = None
        self._maps: dict[str, np.ndarray] = {}
        self._packed = False

    def read(self, stem: str) -> CachedSample:
        """The sample as views into the map.

        Raises:
            ValueError: the files are gone.
        """
        if self._rows is None:
            self._open()
        assert self._rows is not None
        dtype, shape, start, planes_dtype, planes_shape, planes_start, known_start, spacing = self._rows[stem]
        image = self._view(_IMAGES, dtype, shape, start)
        planes: np.ndarray | PackedPlanes
        if self._packed:
            height, width, count = planes_shape
            packed_shape = height, width, -(-count // 8)
            bits, known = (
                None if offset is None else self._view(_PLANES, planes_dtype, packed_shape, offset)
                for offset in (planes_start, known_start)
            )
            assert bits is not None
            planes = PackedPlanes(bits, known, count)
        else:
            planes = self._view(_PLANES, planes_dtype, planes_shape, planes_start)
        return CachedSample(stem, image, planes, None if spacing is None else tuple(spacing))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_maps": {}}

    def _open(self) -> None:
        index = read_index(self.folder)
        if index is None:
            raise ValueError(f"{self.folder}: this decoded copy is gone or damaged. Start again to make it anew.")
        for name in (_IMAGES, _PLANES):
            with (self.folder / name).open("rb") as file:
                # Plain arrays on a map: slicing an np.memmap costs several times as much.
                self._maps[name] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._packed, self._rows = index["packed"], index["samples"]

    def _view(self, name: str, dtype: str, shape: Iterable[int], start: int) -> np.ndarray:
        return np.ndarray(tuple(shape), dtype, self._maps[name].data, start)


def read_index(folder: Path) -> dict[str, Any] | None:
    """What `SampleWriter.finish` wrote, or None where it is not there or the files are not as long as it says."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in index["sizes"].items())
        whole &= index.keys() >= {"sizes", "packed", "samples"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return index if whole else None
