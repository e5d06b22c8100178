"""DICOM series: which slices make a volume, in what order, and where its voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.formats.dicom_files import Frame, folder_headers, folder_stamp, read_header, series_of
from segkit.formats.dicom_pixels import read_pixels, rescaled
from segkit.formats.grids import Grid, checked_affine
from segkit.formats.limits import RAISE_LIMIT, max_voxels
from segkit.formats.nifti_slices import Volume

# Share of the median distance by which a distance of neighbouring slices may differ: positions are rounded in files.
_UNEVEN = 0.1
# Share of a pixel by which a slice may lie beside the line through the first and the last one.
_BESIDE = 0.25
# Of unit vectors, and of sizes of pixels: a thousandth is half a pixel in 512.
_ALIKE = 1e-3
# Nearer than that, in mm, two slices lie at one place.
_SAME_MM = 1e-3
# DICOM's axes grow to the left and the back, those of `Grid` to the right and the front.
_TO_RIGHT_AND_FRONT = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Series:
    """Slices that make a volume.

    Attributes:
        path: the folder of the slices, or the file that holds them all.
        frames: the slices, in order along the normal of their planes.
        grid: stored axes are columns, rows and slices.
    """

    path: Path
    frames: Sequence[Frame]
    grid: Grid


def open_series(path: Path) -> Series:
    """The series in a folder, or in a multi-frame file; no pixels are read.

    Raises:
        ValueError: names the folder and says why its slices make no volume: none, several series, slices that differ
            in size or direction, that lie at one place, or whose distances differ (one is missing).
    """
    frames = _in_folder(path) if path.is_dir() else _in_file(path)
    first = frames[0]
    for frame in frames:
        _check_alike(frame, first)
    along_row, along_column = np.array(first.directions[:3]), np.array(first.directions[3:])
    places = np.array([frame.position for frame in frames])
    heights = places @ np.cross(along_row, along_column)
    order = np.argsort(heights, kind="stable")
    frames, places, heights = [frames[i] for i in order], places[order], heights[order]
    if len(frames) > 1:
        _check_even(path, frames, heights)
        step = (places[-1] - places[0]) / (len(frames) - 1)
        _check_line(path, frames, places, step)
    else:
        step = np.cross(along_row, along_column) * first.thickness_mm
    affine = np.eye(4)
    affine[:3] = np.column_stack([along_row * first.spacing_mm[1], along_column * first.spacing_mm[0], step, places[0]])
    rows, columns = first.size_hw
    shape = (columns, rows, len(frames))
    if not 0 < rows * columns * len(frames) <= max_voxels():
        raise ValueError(
            f"{path}: the headers say {shape} voxels, expected between 1 and {max_voxels()} of them ({RAISE_LIMIT})."
        )
    return Series(path, frames, Grid(shape, checked_affine(_TO_RIGHT_AND_FRONT @ affine, path)))


def decode_series(series: Series) -> Volume:
    """The volume of a series, in the units of its modality such as Hounsfield units.

    Values are as stored where no scale is given, int16 where that holds them, else float32. Pictures that are stored
    with white at 0 (MONOCHROME1) are not inverted: how they are shown does not change what was measured.

    Raises:
        ValueError: names the file that cannot be decoded.
    """
    slices, path, pixels = [], None, np.empty(0)
    for frame in series.frames:
        if frame.path != path:
            path, pixels = frame.path, read_pixels(frame.path, max_voxels())[0]
        stored = pixels[frame.number] if pixels.ndim == 3 else pixels
        if stored.shape != frame.size_hw:
            raise ValueError(f"{frame.path}: pixels are {stored.shape}, the header says {frame.size_hw}.")
        slices.append(rescaled(stored, *frame.scale))
    array = np.stack(slices).T
    if array.dtype not in (np.uint8, np.uint16, np.int16):
        array = array.astype(np.float32)
    array = np.asarray(series.grid.from_stored(array), order="F")
    array.flags.writeable = False
    return Volume(array, series.grid)


def _in_folder(folder: Path) -> list[Frame]:
    headers, damaged = folder_headers(folder, folder_stamp(folder))
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    series = series_of(headers)
    long = {uid: paths for uid, paths in series.items() if len(paths) > 1} or series
    if not long:
        raise ValueError(f"{folder}: no volume: holds no DICOM slices that say how they lie in the patient.")
    if len(long) > 1:
        found = "; ".join(
            f"{headers[paths[0]].about or 'no description'!r}: {len(paths)} files such as {paths[0].name}"
            for paths in long.values()
        )
        raise ValueError(
            f"{folder}: holds {len(long)} DICOM series ({found}). Move each into a folder of its own, which then is "
            "the name of the volume."
        )
    return [headers[path].placed[0] for path in next(iter(long.values()))]


def _in_file(path: Path) -> list[Frame]:
    header = read_header(path)
    if not header.placed:
        raise ValueError(
            f"{path}: holds {header.count} frames and does not say how each lies in the patient (no ImagePosition"
            "Patient, ImageOrientationPatient and PixelSpacing): a film, or no volume. Convert it to NIfTI, or its "
            "frames to pictures."
        )
    return list(header.placed)


def _check_alike(frame: Frame, first: Frame) -> None:
    turned = np.abs(np.subtract(frame.directions, first.directions)).max(initial=0)
    scaled = np.abs(np.divide(frame.spacing_mm, first.spacing_mm) - 1).max(initial=0)
    if frame.size_hw != first.size_hw or not turned <= _ALIKE or not scaled <= _ALIKE:
        raise ValueError(
            f"{frame.path}: {frame.size_hw[0]}x{frame.size_hw[1]} pixels of {frame.spacing_mm} mm along "
            f"{frame.directions}, but {_name(first)} of the same series has {first.size_hw[0]}x{first.size_hw[1]} of "
            f"{first.spacing_mm} mm along {first.directions}. Slices of a volume are alike: move others elsewhere."
        )


def _check_even(path: Path, frames: Sequence[Frame], heights: np.ndarray) -> None:
    distances = np.diff(heights)
    usual = float(np.median(distances))
    same = int((distances < _SAME_MM).sum())
    if same:
        at = int(distances.argmin())
        raise ValueError(
            f"{path}: {same + 1} or more of {len(frames)} slices share their place with another, such as "
            f"{_name(frames[at])} and {_name(frames[at + 1])}: several times, echoes or directions in one series? "
            "Move each into a folder of its own."
        )
    uneven = np.abs(distances - usual) > _UNEVEN * usual
    if uneven.any():
        at = int(np.abs(distances - usual).argmax())
        raise ValueError(
            f"{path}: slices are {usual:.4g} mm apart, but {_name(frames[at])} and {_name(frames[at + 1])} "
            f"{distances[at]:.4g} mm ({int(uneven.sum())} such of {len(distances)} distances, {distances.min():.4g} to "
            f"{distances.max():.4g} mm). Add the missing slices, or resample the series and convert it to NIfTI."
        )


def _check_line(path: Path, frames: Sequence[Frame], places: np.ndarray, step: np.ndarray) -> None:
    beside = np.linalg.norm(places - places[0] - np.arange(len(places))[:, None] * step, axis=1)
    at, allowed = int(beside.argmax()), _BESIDE * min(*frames[0].spacing_mm, float(np.linalg.norm(step)))
    if not beside[at] <= allowed:
        raise ValueError(
            f"{path}: {_name(frames[at])} lies {beside[at]:.4g} mm beside the line through the first and the last "
            f"slice, expected at most {allowed:.4g} mm. Resample the series and convert it to NIfTI."
        )


def _name(frame: Frame) -> str:
    return frame.path.name if frame.number == 0 else f"{frame.path.name} (frame {frame.number})"
