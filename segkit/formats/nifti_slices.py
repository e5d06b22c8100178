"""Slices of volumes: how they are named and laid out; and what NIfTI files hold.

A volume is an array `(x, y, z)` whose axes grow to the patient's right, front and head however the file stores it, see
`grids`. A slice across one axis has rows along the later of the two other axes and columns along the earlier one:

| axis | `volume_slice(array, axis, i)` | rows, columns |
|---|---|---|
| z | `array[:, :, i].T` | y, x |
| y | `array[:, i, :].T` | z, x |
| x | `array[i, :, :].T` | z, y |
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.grids import Grid, checked_affine
from segkit.formats.limits import RAISE_LIMIT, max_voxels
from segkit.formats.nifti_content import check_nifti_start, read_voxels

AXES = ("x", "y", "z")
NIFTI_SUFFIXES = (".nii.gz", ".nii")

_SLICE = re.compile(r"(?P<case>.+)@(?P<axis>[xyz])(?P<index>[0-9]{3,})")
# What `xyzt_units` says one unit of the affine is.
_UNITS_MM = {1: 1000.0, 3: 0.001}
# Cosine of the angle between two axes that a qform may lose.
_SHEAR = 1e-4


@dataclass(frozen=True, eq=False)
class Volume:
    """A decoded volume.

    Attributes:
        array: (x, y, z) or (x, y, z, bands), read-only, in the stored depth (float32 where the header rescales).
            x runs fastest in memory, so that slices across z are read without a copy.
        grid: where the voxels lie.
    """

    array: np.ndarray
    grid: Grid

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along x, y and z."""
        return self.grid.spacing_mm


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


def parse_axes(axes: Sequence[str]) -> tuple[str, ...]:
    """(`z`, `y`, `x`) of `zyx`.

    Raises:
        ValueError: other letters, none, or one twice.
    """
    if not axes or len(set(axes)) != len(axes) or not set(axes) <= set(AXES):
        raise ValueError(f"axis is {''.join(axes)!r}: expected x, y or z, or several of them, each once, as in `zyx`.")
    return tuple(axes)


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


def open_nifti(path: str | Path) -> Any:
    """The nibabel image: header read and checked, voxels not yet."""
    # Imported here: nibabel costs 0.2 s, and most data sets hold no volumes.
    import nibabel

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    check_nifti_start(Path(path))
    try:
        image: Any = nibabel.load(path)
    except Exception as error:  # nibabel has many kinds of its own, down to those of zlib
        raise ValueError(f"{path}: no readable NIfTI volume ({error}). Restore the file or leave it out.") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"{path}: is a {type(image).__name__}, expected a NIfTI volume.")
    voxels = math.prod(int(n) for n in image.shape)
    limit = max_voxels()
    if min(image.shape, default=0) < 1 or voxels > limit:
        raise ValueError(
            f"{path}: the header says {image.shape} voxels, expected between 1 and {limit} of them ({RAISE_LIMIT})."
        )
    return image


def nifti_geometry(path: Path) -> tuple[Grid, int]:
    """Where the voxels lie, and the number of bands, from the header alone.

    Raises:
        ValueError: names the file when it is not a NIfTI volume.
    """
    image = open_nifti(path)
    return nifti_grid(image, path), math.prod(_squeezed(image.shape, path)[3:])


def nifti_grid(image: Any, path: Path) -> Grid:
    """Where the voxels of a nibabel image lie: by its sform, else its qform, as nibabel and ITK have it."""
    header, shape = image.header, _squeezed(image.shape, path)[:3]
    unit_mm = _UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    if int(header["sform_code"]) == int(header["qform_code"]) == 0:
        sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
        # Smaller ones are damage, and their axis would be lost when axes are brought to one order.
        sizes[~(np.isfinite(sizes) & (sizes > 1e-20))] = 1.0
        return Grid(shape, np.diag([*(sizes * unit_mm), 1.0]), oriented=False)
    affine = checked_affine(header.get_best_affine(), path)
    return Grid(shape, np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ affine)


def decode_nifti(path: Path) -> Volume:
    """The volume with all its voxels.

    Raises:
        ValueError: names the file when it is missing, cut short or no NIfTI volume.
    """
    image = open_nifti(path)
    shape, grid = _squeezed(image.shape, path), nifti_grid(image, path)
    stored = image.dataobj
    if stored.dtype.kind not in "biuf":
        raise ValueError(f"{path}: voxels are {stored.dtype}, expected numbers (RGB and complex volumes are not read).")
    size = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    content = read_voxels(path, size)
    array = np.ndarray(shape, stored.dtype, content, stored.offset, order="F")
    if (stored.slope, stored.inter) != (1.0, 0.0):
        array = array * np.float32(stored.slope) + np.float32(stored.inter)
    # float64 has a second half that nothing in segkit needs.
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    array = np.asarray(grid.from_stored(array), dtype=dtype, order="F")
    array.flags.writeable = False
    return Volume(array, grid)


def nifti_labels_header(path: Path) -> bytes:
    """Header of a NIfTI volume as its labels get it: the same but for depth, bands, and what belongs to gray values."""
    image = open_nifti(path)
    header = image.header.copy()
    header.set_data_shape(_squeezed(image.shape, path)[:3])
    header.set_data_dtype(np.uint8)
    # Scaling and display range belong to the grey values of the image.
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    return _as_bytes(header)


def grid_header(grid: Grid) -> bytes:
    """Header of labels on a grid that comes from another kind of file."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape(grid.stored_shape)
    header.set_data_dtype(np.uint8)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    # A qform holds no shear, as of a tilted gantry; one that says something else than the sform is worse than none.
    upright = np.abs(axes.T @ axes - np.eye(3)).max() < _SHEAR
    header.set_qform(grid.affine, code="scanner" if upright else "unknown")
    return _as_bytes(header)


def _as_bytes(header: Any) -> bytes:
    buffer = io.BytesIO()
    header.write_to(buffer)
    return buffer.getvalue()


def _squeezed(shape: tuple[int, ...], path: str | Path) -> tuple[int, ...]:
    """Three axes, or four where the volume has several bands; NIfTI puts bands on axis 4 or 5."""
    space, bands = tuple(shape[:3]), tuple(n for n in shape[3:] if n != 1)
    if len(space) != 3 or len(bands) > 1:
        raise ValueError(f"{path}: a volume of shape {tuple(shape)}, expected (x, y, z) or (x, y, z, bands).")
    return space + bands
