"""Headers of DICOM files: what each holds, and which files of a folder belong together."""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from segkit.formats.files import file_stamp, is_shown, read_whole

# Names end in these, in numbers (1.2.840.113), or in nothing at all: the content decides.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# Files that lie beside images by the thousand; not opened to see whether they are DICOM.
_NEVER_DICOM = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".jp2",
    ".nii",
    ".gz",
    ".json",
    ".txt",
    ".csv",
}
# How long the list of the files in a folder is believed.
_LOOK_AGAIN_S = 0.25
# A deflated file is unfolded whole, even for its header: up to so many bytes, and beyond to so many times its own.
_MOST_UNFOLDED, _MOST_GROWTH = 2**26, 32
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# Kinds of values whose length takes four bytes (PS3.5, 7.1.2).
_LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_HEADER_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True)
class Frame:
    """One picture of a DICOM file, and where it lies in the patient.

    Attributes:
        path, number: the file, and the frame in it from 0.
        size_hw: rows and columns.
        position: of the centre of the first pixel, mm, towards left, back and head (DICOM's axes).
        directions: unit vectors along a row and along a column.
        spacing_mm: between rows, between columns.
        thickness_mm: distance of slices where only one is there.
        scale: (slope, intercept); stored values times the one plus the other are in the units of the modality.
    """

    path: Path
    number: int
    size_hw: tuple[int, int]
    position: tuple[float, ...]
    directions: tuple[float, ...]
    spacing_mm: tuple[float, float]
    thickness_mm: float
    scale: tuple[float, float]


@dataclass(frozen=True)
class Header:
    """What one DICOM file holds.

    Attributes:
        series: its SeriesInstanceUID.
        about: what the scanner calls the series.
        count: number of frames; 0 where the file holds no picture.
        placed: its frames, where it says of all how they lie in the patient.
    """

    path: Path
    series: str
    about: str
    count: int
    placed: tuple[Frame, ...]

    @property
    def is_slice(self) -> bool:
        """Whether this is one slice that says how it lies in the patient, and so may belong to a volume."""
        return self.count == 1 and bool(self.placed)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content: the letters DICM after 128 bytes."""
    if path.suffix.lower() in _NEVER_DICOM:
        return False
    try:
        # A pipe would be waited for without end.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def without_dicom_suffix(name: str) -> str:
    """`name` without `.dcm`; what follows another dot is part of a name such as 1.2.840.113."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in DICOM_SUFFIXES else name


def folder_sources(folder: Path) -> dict[Path, Path]:
    """What each DICOM file in a folder is read as: the folder, where it is a slice of the series there, or itself.

    Files without pictures are left out: directories (DICOMDIR), contours, segmentations, reports.
    """
    headers, damaged = folder_headers(folder, folder_stamp(folder))
    slices = {path for paths in series_of(headers).values() if len(paths) > 1 for path in paths}
    if slices:
        slices |= damaged.keys()  # that one cannot be read must not make a volume without it
    pictures = [path for path, header in headers.items() if header.count]
    return {path: folder if path in slices else path for path in sorted({*pictures, *damaged})}


def series_of(headers: dict[Path, Header]) -> dict[str, list[Path]]:
    """SeriesInstanceUID -> the files of single slices that belong to it."""
    found: dict[str, list[Path]] = {}
    for header in headers.values():
        if header.is_slice:
            found.setdefault(header.series, []).append(header.path)
    return found


def folder_stamp(folder: Path) -> tuple[str, str]:
    """Differs once a file in `folder` has been added, removed, or written anew a moment ago."""
    try:
        facts = os.stat(folder)
    except OSError:
        raise ValueError(f"{folder}: no such folder.") from None
    # A folder has no time that tells of its files, and to ask each of a thousand for every slice would take longer
    # than reading it.
    return str(folder), _listing(str(folder), facts.st_mtime_ns, int(time.monotonic() / _LOOK_AGAIN_S))


@lru_cache(maxsize=64)
def _listing(folder: str, changed: int, moment: int) -> str:
    with os.scandir(folder) as entries:
        facts = sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries if e.is_file())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@lru_cache(maxsize=64)
def folder_headers(folder: Path, stamp: tuple) -> tuple[dict[Path, Header], dict[Path, str]]:
    """Headers of the DICOM files in a folder by path, and what is wrong with those that cannot be read."""
    headers, damaged = {}, {}
    for path in sorted(folder.iterdir()):
        if is_shown(path.name) and is_dicom(path):
            import_pydicom(path)
            try:
                headers[path] = read_header(path)
            except ValueError as error:
                damaged[path] = str(error)
    return headers, damaged


def header_of(path: Path) -> Header | None:
    """Header of one file, kept for a while; None where it cannot be read, which reading it will say."""
    import_pydicom(path)
    try:
        return _header_of(path, file_stamp(path))
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _header_of(path: Path, stamp: tuple) -> Header:
    return read_header(path)


def read_header(path: Path) -> Header:
    """Header of one file.

    Raises:
        ValueError: names the file when it cannot be read.
    """
    pydicom = import_pydicom(path)
    check_deflated(path)
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        kind = ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID")
        is_picture = "Rows" in ds and "Columns" in ds and kind != _SEGMENTATION
        # pydicom reads what there is of a file that was cut short, which may be nothing.
        if kind is None or (not is_picture and "Image Storage" in kind.name):
            raise ValueError("cut short")
        count = int(ds.get("NumberOfFrames") or 1) if is_picture else 0
        series, about = str(ds.get("SeriesInstanceUID", "")), str(ds.get("SeriesDescription", ""))
        return Header(path, series, about, count, tuple(_placed(ds, path, count)))
    except Exception as error:  # pydicom raises many kinds, down to struct.error
        raise ValueError(f"{path}: no readable DICOM file ({error or type(error).__name__}).") from None


def check_deflated(path: Path) -> None:
    """Refuse a deflated file that unfolds to far more than pictures do, before pydicom unfolds it without bound.

    Raises:
        ValueError: names the file.
    """
    try:
        with path.open("rb") as file:
            if _DEFLATED not in file.read(4096):
                return
    except OSError:
        return  # which reading it will say
    content = read_whole(path)
    most = _MOST_UNFOLDED + _MOST_GROWTH * len(content)
    stream, unfolded, packed = zlib.decompressobj(-zlib.MAX_WBITS), 0, content[_end_of_meta(content) :]
    try:
        while packed and not stream.eof and unfolded <= most:
            unfolded += len(stream.decompress(packed, 2**20))
            packed = stream.unconsumed_tail
    except zlib.error:
        return  # which reading it will say
    if unfolded > most:
        raise ValueError(
            f"{path}: its {len(content)} bytes unfold to more than {most}, expected a picture. Store it uncompressed."
        )


def _end_of_meta(content: bytes) -> int:
    """First byte behind the file meta information (PS3.10, 7.1), which is never deflated."""
    position = 132
    while content[position : position + 2] == b"\2\0" and position + 12 <= len(content):
        if content[position + 4 : position + 6] in _LONG_KINDS:
            position += 12 + struct.unpack_from("<I", content, position + 8)[0]
        else:
            position += 8 + struct.unpack_from("<H", content, position + 6)[0]
    return position


def _placed(ds: Any, path: Path, count: int) -> tuple[Frame, ...]:
    """The frames of a file with their places, or none where one of them has no place."""
    if not count or int(ds.get("SamplesPerPixel") or 1) != 1:
        return ()
    shared = _first(ds, "SharedFunctionalGroupsSequence")
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    if count > 1 and (groups is None or len(groups) != count):
        return ()
    frames = [_frame(ds, own, shared, path, number) for number, own in enumerate(groups or [None])]
    return tuple(frame for frame in frames if frame is not None) if all(frames) else ()


def _frame(ds: Any, own: Any, shared: Any, path: Path, number: int) -> Frame | None:
    """One frame; an enhanced file says where it lies for each frame or for all, an older one in itself."""
    place, plane, pixels, values = (
        _first(own, name) or _first(shared, name) or ds
        for name in (
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
        )
    )
    position, directions = place.get("ImagePositionPatient"), plane.get("ImageOrientationPatient")
    spacing = pixels.get("PixelSpacing")
    if not position or not directions or not spacing:
        return None
    return Frame(
        path,
        number,
        size_hw=(int(ds.Rows), int(ds.Columns)),
        position=tuple(float(v) for v in position),
        directions=tuple(float(v) for v in directions),
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        thickness_mm=float(pixels.get("SpacingBetweenSlices") or pixels.get("SliceThickness") or 1),
        scale=scale_of(values),
    )


def scale_of(holder: Any) -> tuple[float, float]:
    """(slope, intercept) that bring stored values to the units of the modality."""
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _first(holder: Any, sequence: str) -> Any:
    """First item of a sequence, or None."""
    items = holder.get(sequence) if holder is not None else None
    return items[0] if items else None


def import_pydicom(path: Path) -> Any:
    """pydicom, or how to install it; `path` is what needs it."""
    try:
        import pydicom
    except ImportError:
        raise ValueError(f"{path}: is DICOM, which needs pydicom: pip install 'segkit[dicom]'") from None
    return pydicom
