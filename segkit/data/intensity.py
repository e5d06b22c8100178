"""Values of one image, or of one volume, brought to mean 0 and deviation 1.

For scanners without a unit, such as MRI: one volume ends at 113, the next at a million, and both show the same.
Everything here looks at whole images, before crops and tiles are cut from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from segkit.formats.volumes import Stamp, load_volume, volume_stamp

# Values that are looked at together: float64 copies of them stay in the processor's cache, however large the image.
_AT_ONCE = 2**17
# Two numbers per band and volume.
_CACHED_SCALES = 4096


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each band of one image or volume.

    Attributes:
        mean: (B,) values in stored units.
        std: (B,) values, 1 where the band never changes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W, B) stored values as float32 with mean 0 and deviation 1 over what the scale is of.

        The bands may repeat, as where an image holds the neighbours of a slice.
        """
        if image.shape[2] == 0 or image.shape[2] % len(self.mean):
            raise ValueError(f"an image of {image.shape[2]} bands, but mean and deviation of {len(self.mean)}.")
        # In whole rows and in place: numpy is slow in inner loops of three, and large images are there only once.
        normalized = image.astype(np.float32, order="C")
        rows = normalized.reshape(len(image), -1)
        times = rows.shape[1] // len(self.mean)
        rows -= np.tile(np.array(self.mean, np.float32), times)
        rows /= np.tile(np.array(self.std, np.float32), times)
        return normalized


def image_scale(image: np.ndarray) -> Scale:
    """Of an (H, W, B) image."""
    rows = max(1, _AT_ONCE // max(1, image[0].size))
    return parts_scale(lambda: [image[start : start + rows] for start in range(0, len(image), rows)])


def volume_scale(array: np.ndarray) -> Scale:
    """Of a volume (x, y, z), which is one band, or (x, y, z, bands)."""
    voxels = array[..., None] if array.ndim == 3 else array
    return parts_scale(lambda: [voxels[:, :, index] for index in range(voxels.shape[2])])


def parts_scale(parts: Callable[[], Iterable[np.ndarray]]) -> Scale:
    """Of an image or volume that comes in parts (..., B), which are asked for twice.

    In two passes, for a sum of squares loses small deviations beside large means.
    """
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for part in parts():
        total = total + [part[..., band].sum(dtype=np.float64) for band in range(part.shape[-1])]
        count += part[..., 0].size
    mean = total / count
    for part in parts():
        squares = squares + [np.square(part[..., band] - mean[band]).sum() for band in range(part.shape[-1])]
    return Scale(tuple(mean.tolist()), tuple(usable_std(np.sqrt(squares / count), mean).tolist()))


def files_scale(paths: Sequence[Path]) -> Scale:
    """Of the volume whose bands lie in these files; computed once in each process, and anew when a file has changed.

    Raises:
        ValueError: names the file that cannot be read, or whose values are not finite.
    """
    scales = [_file_scale(path, volume_stamp(path)) for path in paths]
    return Scale(tuple(m for s in scales for m in s.mean), tuple(d for s in scales for d in s.std))


def clipped(image: np.ndarray, clip: Sequence[tuple[float, float]] | None) -> np.ndarray:
    """(H, W, B) image whose values beyond (low, high) of their band became that value, of the same dtype.

    Augmentations change what is not 8-bit in units of the image's own range, which should be the range that the model
    sees: a fifth of all Hounsfield units is more than a window of soft tissue. 8-bit images stay as they are.
    """
    if clip is None or image.dtype == np.uint8:
        return image
    low, high = np.array(clip).T
    if image.dtype == np.uint16:
        # Outwards, and within what 16 bits hold: the model clips what is left, and must find the same value here.
        low, high = np.floor(low).clip(0, 65535), np.ceil(high).clip(0, 65535)
    return np.clip(image, low, high).astype(image.dtype)


def usable_std(std: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """1 in place of the deviation of a band that never changes, up to rounding."""
    return np.where(std > 1e-6 * np.abs(mean), std, 1.0)


@lru_cache(_CACHED_SCALES)
def _file_scale(path: Path, stamp: Stamp) -> Scale:
    scale = volume_scale(load_volume(path).array)
    if not np.isfinite([scale.mean, scale.std]).all():
        raise ValueError(
            f"{path}: holds values that are NaN or infinite, so the volume has no mean to normalise by. "
            "Replace them by a number, or leave the volume out with `quarantine`."
        )
    return scale
