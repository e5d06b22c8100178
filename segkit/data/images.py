"""Image files: which ones a folder holds, and what their pixels are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from segkit.data.patterns import Pattern
from segkit.formats.dicom_files import DICOM_SUFFIXES, is_dicom, without_dicom_suffix
from segkit.formats.files import walk
from segkit.formats.image_files import PICTURE_SUFFIXES, read_image_file
from segkit.formats.nifti_slices import axis_number, parse_axes, slice_spacing_mm, slice_stem, volume_slice
from segkit.formats.volumes import (
    is_volume,
    join_series,
    load_volume,
    misplaced,
    volume_files,
    volume_grid,
    volume_name,
    volume_shape,
)
from segkit.suggest import closest

IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *DICOM_SUFFIXES)
# cv2.resize averages over areas of at most four bands.
_MAX_BANDS = 4


@dataclass(frozen=True, slots=True)  # there may be a hundred thousand
class ImageRef:
    """Where one image lies: a file, one slice of a volume, or either of several files that hold a band each.

    Attributes:
        path: the file, or the folder of a DICOM series; of several the first.
        axis: `x`, `y` or `z` for a slice of a volume, else None.
        index: number of the slice, from 0.
        bands: all files in the order of the bands, where there are several.
        missing: names of bands without a file; such an image cannot be read.
    """

    path: Path
    axis: str | None = None
    index: int | None = None
    bands: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read for this image."""
        paths = self.bands or (self.path,)
        return paths if self.axis is None else tuple(file for path in paths for file in volume_files(path))

    def __str__(self) -> str:
        return str(self.path) if self.axis is None else f"{self.path} (slice {self.axis}{self.index})"


def find_images(root: str | Path, axis: str = "z") -> dict[str, ImageRef]:
    """All images below `root`, by stem, sorted.

    A stem is the path below `root` without its suffix. A volume gives one image per slice across `axis`, or
    across each of several (`zyx`): a NIfTI file,
    a folder with the slices of a DICOM series, named after the folder, or a multi-frame DICOM file. Hidden files and
    what `segkit predict` puts beside masks are passed over.

    Raises:
        ValueError: no such folder, or two images of one stem.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder. {_nearest_folder(root)}".rstrip())
    parse_axes(axis)
    found: dict[str, ImageRef] = {}
    for path in join_series(path for _, path in sorted(walk(root))):
        for stem, ref in image_refs(root, path, axis):
            if stem in found:
                raise ValueError(
                    f"{root}: two images are named {stem!r}: {found[stem].path.name} and {path.name}. "
                    "Masks are found by this name: rename one of the images, or keep them in different folders."
                )
            found[stem] = ref
    return dict(sorted(found.items()))


def join_bands(refs: dict[str, ImageRef], pattern: Pattern) -> dict[str, ImageRef]:
    """Images by the stem of their sample, of those whose names match `pattern`; files of bands become one image.

    Args:
        refs: images by the stem of their file, as `find_images` gives them.
    """
    if pattern.is_plain:
        return refs
    if not pattern.bands:
        return {stem: refs[name] for stem, name in sorted(pattern.by_stem(refs).items())}
    found: dict[str, dict[str, ImageRef]] = {}
    for name, ref in refs.items():
        match = pattern.match(name)
        if match is not None:
            found.setdefault(match[0], {})[match[1]] = ref
    return {stem: _joined(parts, pattern.bands) for stem, parts in sorted(found.items())}


def _joined(parts: dict[str, ImageRef], bands: tuple[str, ...]) -> ImageRef:
    there = [parts[band] for band in bands if band in parts]
    return replace(
        there[0], bands=tuple(ref.path for ref in there), missing=tuple(band for band in bands if band not in parts)
    )


def image_refs(root: Path, path: Path, axis: str = "z", any_suffix: bool = False) -> Iterator[tuple[str, ImageRef]]:
    """(stem below `root`, image) of a file: one, one for each slice of a volume, or none where it is no image.

    Args:
        path: a file, or the folder of a DICOM series.
        any_suffix: take a file for an image whatever its suffix.
    """
    folder = path.relative_to(root).parent.as_posix()
    folder = "" if folder == "." else f"{folder}/"
    case = volume_name(path)
    if case is not None:
        for across in axis:
            for index in range(volume_shape(path)[axis_number(across)]):
                yield slice_stem(folder + case, across, index), ImageRef(path, across, index)
    elif is_dicom(path):
        yield folder + without_dicom_suffix(path.name), ImageRef(path)
    elif any_suffix or path.suffix.lower() in IMAGE_SUFFIXES:
        yield folder + path.name[: len(path.name) - len(path.suffix)], ImageRef(path)


def read_image(source: str | Path | ImageRef, gray: bool = False) -> np.ndarray:
    """(H, W, B) pixels of an image in stored units; uint8, uint16 or float32.

    Slices of volumes keep their bands; for files see `read_image_file`. Of several files that make one image, each
    keeps the bands it has: one if it is gray.

    Args:
        source: file, or what `find_images` returned.
        gray: 8-bit images give one band, B = 1.

    Raises:
        ValueError: names the file: missing, empty, cut short, damaged, too large, or no image.
    """
    ref = source if isinstance(source, ImageRef) else ImageRef(Path(source))
    if ref.bands or ref.missing:
        return _read_bands(ref)
    return _read_file(ref, gray)


def _read_file(ref: ImageRef, gray: bool | None) -> np.ndarray:
    if ref.axis is not None or is_volume(ref.path):
        return _finite(_read_slice(ref), ref)
    if is_dicom(ref.path):
        from segkit.formats.dicom_pixels import read_dicom_image

        return _finite(read_dicom_image(ref.path, gray), ref)
    return _finite(read_image_file(ref.path, gray), ref)


def _read_bands(ref: ImageRef) -> np.ndarray:
    """(H, W, B) of several files, one after the other."""
    if ref.missing:
        raise ValueError(
            f"{ref.path}: the image has no file for the bands {list(ref.missing)} among those given. Add them (`segkit "
            "predict` takes all files of an image, or their folder), or leave the image out with `quarantine`."
        )
    parts: list[np.ndarray] = []
    for path in ref.bands:
        one = replace(ref, path=path, bands=())
        if ref.axis is not None and (found := misplaced(path, ref.path)) is not None:
            raise ValueError(
                f"{path}: does not lie on the voxels of {ref.path}: {found}. Bring all bands onto one grid, "
                "or leave it out with `quarantine`."
            )
        part = _read_file(one, None)
        if parts and (part.shape[:2], part.dtype) != (parts[0].shape[:2], parts[0].dtype):
            raise ValueError(
                f"{one}: is {_kind_text(part)}, but {ref.bands[0].name} is {_kind_text(parts[0])}: the bands of an "
                "image have one size and one depth. Store them alike, or leave the image out with `quarantine`."
            )
        parts.append(part)
    return np.concatenate(parts, axis=2)


def _kind_text(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]} (height x width) of {image.dtype}"


def image_spacing_mm(ref: ImageRef) -> tuple[float, float] | None:
    """(row, column) distances of a slice, None for an image file without such."""
    if ref.axis is None:
        return None
    return slice_spacing_mm(volume_grid(ref.path).spacing_mm, ref.axis)


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w, B) image of the same dtype: averaged over areas where it shrinks, linear where it grows."""
    if image.shape[2] > _MAX_BANDS:
        starts = range(0, image.shape[2], _MAX_BANDS)
        return np.concatenate([resize_image(image[..., i : i + _MAX_BANDS], size_hw) for i in starts], axis=2)
    bands = image.shape[2]
    # INTER_AREA antialiases only where both sides shrink, so the shrinking side goes first.
    smaller = min(image.shape[0], size_hw[0]), min(image.shape[1], size_hw[1])
    for (height, width), method in ((smaller, cv2.INTER_AREA), (size_hw, cv2.INTER_LINEAR)):
        if image.shape[:2] != (height, width):
            image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
            image = image.reshape(height, width, bands)
    return image


def resize_planes(planes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w, P) planes: each pixel takes the value at its centre, so no value appears that was not there.

    OpenCV's INTER_NEAREST takes the upper left corner instead, up to one pixel beside the resized image.
    """
    if planes.shape[:2] == tuple(size_hw):
        return planes
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(planes.shape[:2], size_hw, strict=True)
    )
    return planes[rows][:, columns]


def _read_slice(ref: ImageRef) -> np.ndarray:
    if ref.axis is None or ref.index is None:
        raise ValueError(f"{ref.path}: a volume, of which one slice is read: take the references of `find_images`.")
    volume = load_volume(ref.path)
    try:
        image = volume_slice(volume.array, ref.axis, ref.index)
    except ValueError as error:  # the file was written anew, with fewer slices
        raise ValueError(f"{ref.path}: {error}") from None
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        image = image.astype(np.float32)
    return image[..., None] if image.ndim == 2 else image


def _finite(image: np.ndarray, ref: ImageRef) -> np.ndarray:
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise ValueError(
            f"{ref}: {np.count_nonzero(~np.isfinite(image))} values are NaN or infinite, from which no model learns. "
            "Replace them by a number, or leave the image out with `quarantine`."
        )
    return image


def _nearest_folder(root: Path) -> str:
    parent = root.parent
    if not parent.is_dir():
        return f"{parent} does not exist either."
    names = [p.name for p in parent.iterdir() if p.is_dir()]
    return closest(parent / root.name, [parent / name for name in sorted(names)])
