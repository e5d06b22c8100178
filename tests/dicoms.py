"""DICOM files written for tests, by the rules of the standard (PS3.3, C.7.6.2 and C.7.6.16)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1"
LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def data_set(pixels: np.ndarray, kind: str = CT, series: str = "1.2.3", bits: int | None = None, **tags):
    """A data set with (H, W), (H, W, 3) or (frames, H, W) pixels, not compressed; extra tags by keyword."""
    pydicom = pytest.importorskip("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = LITTLE_ENDIAN
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = kind, pydicom.uid.generate_uid(), series
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = kind, ds.SOPInstanceUID
    frames, colour = (len(pixels), False) if pixels.ndim == 3 and pixels.shape[2] != 3 else (1, pixels.ndim == 3)
    ds.Rows, ds.Columns = pixels.shape[1:3] if frames > 1 else pixels.shape[:2]
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = np.ascontiguousarray(pixels).tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def save(ds, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def places(affine: np.ndarray, count: int) -> tuple[list[float], list[float], list[list[float]]]:
    """ImageOrientationPatient, PixelSpacing and each ImagePositionPatient of an affine to right, front, head (RAS+)."""
    left_back = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    along_row, along_column = (left_back[:3, i] / np.linalg.norm(left_back[:3, i]) for i in (0, 1))
    spacing = [float(np.linalg.norm(left_back[:3, i])) for i in (1, 0)]
    positions = [[_rounded(v) for v in left_back[:3, 3] + k * left_back[:3, 2]] for k in range(count)]
    return [_rounded(v) for v in (*along_row, *along_column)], [_rounded(v) for v in spacing], positions


def write_series(
    folder: Path, stored: np.ndarray, affine: np.ndarray, *, name="{:03d}.dcm", order=None, **tags
) -> None:
    """One file per slice of an (i, j, k) array: i along rows, j along columns, k across slices.

    Args:
        order: numbers of the slices in the order of their names; default as they lie.
    """
    directions, spacing, positions = places(affine, stored.shape[2])
    for number, k in enumerate(range(stored.shape[2]) if order is None else order):
        ds = data_set(
            stored[:, :, k].T,
            ImageOrientationPatient=directions,
            PixelSpacing=spacing,
            ImagePositionPatient=positions[k],
            InstanceNumber=number + 1,
            **tags,
        )
        save(ds, folder / name.format(number))


def write_multi_frame(path: Path, stored: np.ndarray, affine: np.ndarray, order=None, slope=1.0, intercept=0.0) -> None:
    """The same in one enhanced file, with directions shared and positions by frame."""
    pydicom = pytest.importorskip("pydicom")

    def item(**tags):
        ds = pydicom.Dataset()
        for key, value in tags.items():
            setattr(ds, key, value)
        return ds

    directions, spacing, positions = places(affine, stored.shape[2])
    order = list(range(stored.shape[2]) if order is None else order)
    ds = data_set(np.stack([stored[:, :, k].T for k in order]), ENHANCED_CT)
    ds.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=directions)],
            PixelMeasuresSequence=[item(PixelSpacing=spacing, SliceThickness=1)],
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept)],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=positions[k])]) for k in order
    ]
    save(ds, path)


def _rounded(value: float) -> float:
    # A decimal string of DICOM has at most 16 characters.
    return float(f"{value:.9g}")
