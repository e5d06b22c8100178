"""Slices of NIfTI volumes: how they are named, laid out and read. Image reader and mask codec share this file.

A volume is an array `(x, y, z)` as nibabel returns it, never reoriented. A slice across one axis has rows along
the later of the two other axes and columns along the earlier one, the layout of ITK and of the file itself:

| axis | `volume_slice(array, axis, i)` | rows, columns |
|---|---|---|
| z | `array[:, :, i].T` | y, x |
| y | `array[:, i, :].T` | z, x |
| x | `array[i, :, :].T` | z, y |
"""

from __future__ import annotations

import gzip
import math
import re
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.files import file_stamp
from segkit.formats.limits import max_voxels

AXES = ("x", "y", "z")
NIFTI_SUFFIXES = (".nii.gz", ".nii")

_SLICE = re.compile(r"(?P<case>.+)@(?P<axis>[xyz])(?P<index>[0-9]{3,})")
# One image and its labels: slices of a case are usually asked for one after the other.
_CACHED_VOLUMES = 2
_cache: OrderedDict[tuple[str, int, int], Volume] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Volume:
    """A decoded volume.

    Attributes:
        array: (x, y, z) or (x, y, z, bands), read-only, in the stored depth (float32 where the header rescales).
        spacing_mm: size of a voxel along x, y and z.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]


def nifti_case_name(path: str | Path) -> str | None:
    """Name of a NIfTI file without `.nii` or `.nii.gz` (any case), or None for another suffix."""
    name = Path(path).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


def slice_stem(case: str, axis: str, index: int) -> str:
    """`case@z017`: slice number `index` of a volume across `axis`, from 0."""
    return f"{case}@{axis}{index:03d}"


def parse_slice_stem(stem: str) -> tuple[str, str, int]:
    """(case, axis, index) of a stem such as `case@z017`."""
    match = _SLICE.fullmatch(stem)
    if match is None:
        raise ValueError(f"{stem!r} names no slice: expected CASE@AXISNUMBER, such as `case@z017`.")
    return match["case"], match["axis"], int(match["index"])


def split_slice_stem(stem: str) -> tuple[str, str]:
    """(`case`, `@z017`) of the stem of a slice, (`a`, ``) of any other stem `a`."""
    match = _SLICE.fullmatch(stem)
    return (stem, "") if match is None else (match["case"], stem[len(match["case"]) :])


def axis_number(axis: str) -> int:
    """0, 1 or 2 for x, y or z."""
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}: expected x, y or z.")
    return AXES.index(axis)


def volume_slice(array: np.ndarray, axis: str, index: int) -> np.ndarray:
    """(H, W) slice of an (x, y, z) array, or (H, W, B) of (x, y, z, bands); contiguous.

    Raises:
        ValueError: the volume has no such slice.
    """
    number = axis_number(axis)
    if not 0 <= index < array.shape[number]:
        raise ValueError(f"slice {axis}{index} of a volume {array.shape}: it has {array.shape[number]} along {axis}.")
    return np.ascontiguousarray(np.moveaxis(array, number, 0)[index].swapaxes(0, 1))


def set_volume_slice(array: np.ndarray, axis: str, index: int, plane: np.ndarray) -> None:
    """Put an (H, W) `plane` into an (x, y, z) array; the inverse of `volume_slice`."""
    np.moveaxis(array, axis_number(axis), 0)[index] = plane.swapaxes(0, 1)


def slice_shape(shape: tuple[int, ...], axis: str) -> tuple[int, int]:
    """(height, width) of the slices across `axis` of a volume of `shape`."""
    number = axis_number(axis)
    columns, rows = (n for i, n in enumerate(shape[:3]) if i != number)
    return rows, columns


def slice_spacing_mm(spacing_mm: tuple[float, float, float], axis: str) -> tuple[float, float]:
    """(row, column) distances in a slice across `axis`, in the order of `size_hw`."""
    number = axis_number(axis)
    columns, rows = (s for i, s in enumerate(spacing_mm) if i != number)
    return rows, columns


def volume_shape(path: str | Path) -> tuple[int, ...]:
    """(x, y, z) or (x, y, z, bands) from the header alone.

    Raises:
        ValueError: names the file when it is not a NIfTI volume.
    """
    return _squeezed(open_nifti(path).shape, path)


def load_volume(path: str | Path) -> Volume:
    """The decoded volume; the last two are kept, so that slices of one case cost one decoding per process.

    Raises:
        ValueError: names the file when it is missing, cut short or no NIfTI volume.
    """
    path = Path(path)
    key = file_stamp(path)
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    volume = _decode(path)
    with _cache_lock:
        _cache[key] = volume
        while len(_cache) > _CACHED_VOLUMES:
            _cache.popitem(last=False)
    return volume


def open_nifti(path: str | Path) -> Any:
    """The nibabel image: header read and checked, voxels not yet."""
    # Imported here: nibabel costs 0.2 s, and most data sets hold no volumes.
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    try:
        image: Any = nibabel.load(path)
    except (ImageFileError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: no readable NIfTI volume ({error}). Restore the file or leave it out.") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"{path}: is a {type(image).__name__}, expected a NIfTI volume.")
    voxels = math.prod(int(n) for n in image.shape)
    limit = max_voxels()
    if not 0 < voxels <= limit:
        raise ValueError(f"{path}: the header says {image.shape} voxels, expected between 1 and {limit} of them.")
    return image


def _decode(path: Path) -> Volume:
    image = open_nifti(path)
    shape = _squeezed(image.shape, path)
    stored = image.dataobj
    if stored.dtype.kind not in "biuf":
        raise ValueError(f"{path}: voxels are {stored.dtype}, expected numbers (RGB and complex volumes are not read).")
    size = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    try:
        content = _read_checked(path, size)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the voxels cannot be decoded ({error}). Restore the file or leave it out.") from None
    if len(content) < size:
        raise ValueError(f"{path}: is cut short ({len(content)} of {size} bytes). Restore the file or leave it out.")
    array = np.ndarray(shape, stored.dtype, content, stored.offset, order="F")
    if (stored.slope, stored.inter) != (1.0, 0.0):
        array = array * np.float32(stored.slope) + np.float32(stored.inter)
    # float64 has a second half that nothing in segkit needs.
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    array = np.asarray(array, dtype=dtype, order="F")
    array.flags.writeable = False
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])
    return Volume(array, (x, y, z))


def _read_checked(path: Path, size: int) -> bytes:
    """The first `size` bytes; a compressed file is read to its end, where its checksum stands."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as plain:
            return plain.read(size)
    # Not through nibabel: it stops before the checksum, and a damaged file becomes other labels.
    with gzip.open(path) as stream:
        content = stream.read(size)
        while stream.read(2**20):
            pass
    return content


def _squeezed(shape: tuple[int, ...], path: str | Path) -> tuple[int, ...]:
    """Three axes, or four where the volume has several bands; NIfTI puts bands on axis 4 or 5."""
    space, bands = tuple(shape[:3]), tuple(n for n in shape[3:] if n != 1)
    if len(space) != 3 or len(bands) > 1:
        raise ValueError(f"{path}: a volume of shape {tuple(shape)}, expected (x, y, z) or (x, y, z, bands).")
    return space + bands
