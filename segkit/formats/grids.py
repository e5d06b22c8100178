"""Where the voxels of a volume lie in the patient, and the one order in which all volumes are cut.

Files store the same head in any of 48 orders: three axes in six sequences, each in one of two directions. In memory
the axes of every volume are `(x, y, z)` with x growing to the patient's right, y to the front and z to the head ("RAS+"
in nibabel, `as_closest_canonical`), so that slice 17 across z is the same anatomy for an image and its labels however
either is stored. Voxels are only renumbered, never interpolated: in an oblique volume x is the stored axis that lies
closest to the line from left to right.

A file that does not say how the patient lies is taken in the order in which it is stored.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

# In voxels. Less than the half voxel by which files differ that count from corners and from centres of voxels, more
# than what float32 affines, quaternions and decimal headers round off at the far corner of 512 voxels.
_TOLERANCE = 0.25


@dataclass(frozen=True, eq=False)
class Grid:
    """The centres of the voxels of a volume.

    Attributes:
        stored_shape: (i, j, k), voxels along the axes as the file stores them.
        affine: (4, 4), from stored (i, j, k, 1) to mm towards right, front and head.
        oriented: False where the file says nothing about the patient; `affine` then holds the size of the voxels only.
    """

    stored_shape: tuple[int, ...]
    affine: np.ndarray
    oriented: bool = True

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z), voxels along the axes in memory."""
        return tuple(self.stored_shape[axis] for axis in self._stored_axes)

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along x, y and z."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        x, y, z = (float(sizes[axis]) for axis in self._stored_axes)
        return x, y, z

    @cached_property
    def directions(self) -> str:
        """Where the stored axes grow to, such as `LPS`; `unknown` where the file does not say."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine)) if self.oriented else "unknown"

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """(i, j, k, ...) as stored to (x, y, z, ...), a view."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(array, self._orientation)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """(x, y, z, ...) to (i, j, k, ...) as stored, a view; the inverse of `from_stored`."""
        from nibabel.orientations import apply_orientation, ornt_transform

        return apply_orientation(array, ornt_transform([[0, 1], [1, 1], [2, 1]], self._orientation))

    @property
    def _stored_axes(self) -> tuple[int, ...]:
        """The stored axis that is x, y and z."""
        return tuple(int(axis) for axis in np.argsort(self._orientation[:, 0]))

    @cached_property
    def _orientation(self) -> np.ndarray:
        """For each stored axis: the axis in memory that it becomes, and 1 or -1 for its direction."""
        from nibabel.orientations import io_orientation

        return io_orientation(self.affine)

    @cached_property
    def _canonical_affine(self) -> np.ndarray:
        """(4, 4), from (x, y, z, 1) in memory to mm."""
        from nibabel.orientations import inv_ornt_aff

        return self.affine @ inv_ornt_aff(self._orientation, self.stored_shape)

    @property
    def _is_stored_in_order(self) -> bool:
        return bool((self._orientation == [[0, 1], [1, 1], [2, 1]]).all())


def checked_affine(affine: Any, path: Path) -> np.ndarray:
    """(4, 4) float64 `affine` if it gives each voxel a place of its own.

    Raises:
        ValueError: names the file.
    """
    from nibabel.orientations import io_orientation

    matrix = np.asarray(affine, np.float64)
    with np.errstate(all="ignore"):
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
        # Of the axes at length 1, so that small voxels are no fault.
        volume = abs(np.linalg.det(matrix[:3, :3] / sizes)) if np.isfinite(matrix).all() else np.nan
    # Axes of lengths 1 and 1e-20 are at right angles, and yet one of them is lost.
    if not volume > 1e-3 or np.isnan(io_orientation(matrix)).any():
        raise ValueError(
            f"{path}: the header places no voxels (its affine is {np.round(matrix[:3], 4).tolist()}). Correct its "
            "sform and qform, or set both of their codes to 0 to read the voxels in the order in which they are stored."
        )
    return matrix


def difference(grid: Grid, other: Grid) -> str | None:
    """How the voxels of `grid` lie beside those of `other`, in words and numbers; None where they coincide.

    Where one of the two says nothing about the patient, their voxels coincide if the other is stored along x, y and z,
    so that both are in the same order either way.
    """
    if grid.oriented != other.oriented:
        known = grid if grid.oriented else other
        if not known._is_stored_in_order:
            return (
                f"one is stored as {known.directions}, the other does not say how the patient lies (qform_code and "
                "sform_code are 0), so nothing tells which of its voxels belongs to which"
            )
    if grid.shape != other.shape:
        return f"it has {_times(grid.shape)} voxels along x, y, z, and the other {_times(other.shape)}"
    if grid.oriented != other.oriented:
        return None
    corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in grid.shape))], np.float64)
    there = corners @ grid._canonical_affine.T
    beside_mm = np.linalg.norm((there - corners @ other._canonical_affine.T)[:, :3], axis=1)
    beside = np.abs(there @ np.linalg.inv(other._canonical_affine).T - corners)[:, :3].max(axis=1)
    worst = int(beside.argmax())
    if beside[worst] <= _TOLERANCE:
        return None
    return (
        f"voxel ({', '.join(str(int(c)) for c in corners[worst, :3])}) lies {beside_mm[worst]:.4g} mm "
        f"({beside[worst]:.4g} voxels) beside that of the other: stored as {grid.directions} with voxels of "
        f"{_times(grid.spacing_mm)} mm, first at {_point(grid)}, against {other.directions}, "
        f"{_times(other.spacing_mm)} mm and {_point(other)}"
    )


def _times(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.5g}" for size in sizes)


def _point(grid: Grid) -> str:
    return "(" + ", ".join(f"{c:.5g}" for c in grid._canonical_affine[:3, 3]) + ")"
