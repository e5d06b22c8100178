"""Image files: which ones a folder holds, and what their pixels are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from segkit.data.image_checks import check_encoded, is_tiff
from segkit.formats.files import walk
from segkit.formats.limits import max_pixels as default_max_pixels
from segkit.formats.nifti_slices import (
    axis_number,
    load_volume,
    nifti_case_name,
    slice_spacing_mm,
    slice_stem,
    volume_shape,
    volume_slice,
)
from segkit.ops.sizes import fit_size as fit_size
from segkit.suggest import closest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".pgm", ".ppm")
# cv2.resize averages over areas of at most four bands.
_MAX_BANDS = 4


@dataclass(frozen=True)
class ImageRef:
    """Where one image lies: a file, or one slice of a volume.

    Attributes:
        path: the file.
        axis: `x`, `y` or `z` for a slice of a volume, else None.
        index: number of the slice, from 0.
    """

    path: Path
    axis: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.axis is None else f"{self.path} (slice {self.axis}{self.index})"


def find_images(root: str | Path, axis: str = "z") -> dict[str, ImageRef]:
    """All images below `root`, by stem, sorted.

    A stem is the path below `root` without its suffix. A NIfTI volume gives one image per slice across `axis`.
    Hidden files and what `segkit predict` puts beside masks are passed over.

    Raises:
        ValueError: no such folder, or two images of one stem.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder. {_nearest_folder(root)}".rstrip())
    axis_number(axis)
    found: dict[str, ImageRef] = {}
    for _, path in sorted(walk(root)):
        for stem, ref in image_refs(root, path, axis):
            if stem in found:
                raise ValueError(
                    f"{root}: two images are named {stem!r}: {found[stem].path.name} and {path.name}. "
                    "Masks are found by this name: rename one of the images, or keep them in different folders."
                )
            found[stem] = ref
    return dict(sorted(found.items()))


def image_refs(root: Path, path: Path, axis: str = "z", any_suffix: bool = False) -> Iterator[tuple[str, ImageRef]]:
    """(stem below `root`, image) of a file: one, one for each slice of a volume, or none where it is no image.

    Args:
        any_suffix: take a file for an image whatever its suffix.
    """
    relative = path.relative_to(root).as_posix()
    case = nifti_case_name(path)
    if case is not None:
        case = relative[: len(relative) - len(path.name)] + case
        for index in range(volume_shape(path)[axis_number(axis)]):
            yield slice_stem(case, axis, index), ImageRef(path, axis, index)
    elif any_suffix or path.suffix.lower() in IMAGE_SUFFIXES:
        yield relative[: len(relative) - len(path.suffix)], ImageRef(path)


def read_image(source: str | Path | ImageRef, gray: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """(H, W, B) pixels of an image in stored units; uint8, uint16 or float32.

    8-bit images are red, green, blue: gray is repeated, alpha is dropped, palettes and 1-bit images become colours,
    and the orientation a camera noted is applied. Every other depth, 8-bit TIFFs of other than 1, 3 or 4 bands,
    and slices of volumes keep the bands they have.

    Args:
        source: file, or what `find_images` returned.
        gray: 8-bit images give one band, B = 1.
        max_pixels: a file that declares more pixels is refused before it is decoded; default `limits.max_pixels()`.

    Raises:
        ValueError: names the file: missing, empty, cut short, damaged, too large, or no image.
    """
    ref = source if isinstance(source, ImageRef) else ImageRef(Path(source))
    limit = default_max_pixels() if max_pixels is None else max_pixels
    if nifti_case_name(ref.path) is not None:
        image = _read_slice(ref)
    else:
        data = _read_bytes(ref.path)
        if is_tiff(data):
            # Imported here: tifffile costs 0.1 s, and most data sets hold no TIFF.
            from segkit.data.tiff_images import read_tiff

            image = read_tiff(ref.path, data, gray, limit)
        else:
            image = _decode(ref.path, data, gray, limit)
    return _finite(image, ref)


def image_spacing_mm(ref: ImageRef) -> tuple[float, float] | None:
    """(row, column) distances of a slice, None for an image file without such."""
    if ref.axis is None:
        return None
    return slice_spacing_mm(load_volume(ref.path).spacing_mm, ref.axis)


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


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    if not data:
        raise ValueError(f"{path}: the file is empty. Copy it again, or leave it out with `quarantine`.")
    return data


def _decode(path: Path, data: bytes, gray: bool, max_pixels: int) -> np.ndarray:
    try:
        header = check_encoded(data)
    except ValueError as error:
        raise ValueError(f"{path}: the file {error}. Copy it again, or leave it out with `quarantine`.") from None
    if header.size_hw is not None:
        check_pixels(path, header.size_hw, max_pixels)
    if header.kind == "jpeg" and header.bands == 3 and header.upright and not gray:
        colours = _decode_jpeg(data)
        if colours is not None:
            return colours
    flag = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    if header.depth is None or header.depth > 8:
        image = _imdecode(data, cv2.IMREAD_UNCHANGED)
        # What keeps 8 bits is decoded as colours or gray after all.
        if header.depth is None and (image is None or image.dtype == np.uint8):
            image = _imdecode(data, flag)
    else:
        image = _imdecode(data, flag)
    if image is None:
        raise ValueError(
            f"{path}: cannot be decoded as an image (it starts with {data[:12]!r}). "
            "Copy it again, save it as PNG, or leave it out with `quarantine`."
        )
    if image.ndim == 2:
        return image[..., None]
    if image.shape[2] >= 3:
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        image = cv2.cvtColor(image, code)
    return image


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """(H, W, 3) RGB by libjpeg-turbo with its SIMD code, the same values in half of OpenCV's time; None if damaged."""
    import imagecodecs

    try:
        image = imagecodecs.jpeg8_decode(data)
    except Exception:  # imagecodecs has an error of its own for each codec
        return None  # OpenCV decodes what can be decoded, or says what is wrong
    return image if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 else None


def _imdecode(data: bytes, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None


def check_pixels(path: Path, size_hw: tuple[int, int], max_pixels: int) -> None:
    """Refuse a file whose header declares no pixels, or more than `max_pixels`."""
    if not 0 < size_hw[0] * size_hw[1] <= max_pixels:
        raise ValueError(
            f"{path}: declares {size_hw[0]}x{size_hw[1]} pixels, expected 1 to {max_pixels}. "
            "Cut it into tiles, or leave it out with `quarantine`."
        )


def _read_slice(ref: ImageRef) -> np.ndarray:
    if ref.axis is None or ref.index is None:
        raise ValueError(f"{ref.path}: a volume, of which one slice is read: take the references of `find_images`.")
    image = volume_slice(load_volume(ref.path).array, ref.axis, ref.index)
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
