"""Pixel statistics of a set of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

IMAGE_DTYPES = ("uint8", "uint16", "float32")
# 8-bit beside 16-bit is scaled to its full range, as batches are (data/loaders.py, `collate`): 65535 / 255.
_FULL_RANGE = 257


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of each band, in stored units (0..255 for 8-bit images).

    Attributes:
        mean: (B,) values.
        std: (B,) values, all positive.
        dtype: of the images they describe: uint8, uint16 or float32.
        source: `encoder` (what the pretrained encoder was trained with), `data` (fitted), or `default`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"
    source: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"pixel statistics need as many positive std as means, got {self.mean} and {self.std}.")
        if self.dtype not in IMAGE_DTYPES:
            raise ValueError(f"pixel statistics for {self.dtype} images: expected one of {', '.join(IMAGE_DTYPES)}.")


def pixel_statistics(images: Iterable[np.ndarray]) -> PixelStatistics:
    """Mean and standard deviation of each band over all pixels of all images.

    Args:
        images: (H, W, B) arrays of uint8, uint16 or float32, in stored units.

    Returns:
        Statistics with `source` "data", in units of the widest dtype: 8-bit beside 16-bit counts as scaled to its full
        range, integers beside float32 as they are. A band that never changes gets a deviation of 1.

    Raises:
        ValueError: no image, bands that differ, or values that are not finite.
    """
    bands = None
    # (3, B) per dtype: number of pixels, sum, sum of squares. The widest dtype is known after the last image.
    sums: dict[np.dtype, np.ndarray] = {}
    for image in images:
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
        bands = pixels.shape[1] if bands is None else bands
        if pixels.shape[1] != bands:
            raise ValueError(f"images have {bands} and {pixels.shape[1]} bands: all must have the same number.")
        found = np.stack([np.full(bands, len(pixels)), pixels.sum(0), (pixels**2).sum(0)])
        sums[image.dtype] = sums.get(image.dtype, 0) + found
    if not sums or not next(iter(sums.values()))[0].any():
        raise ValueError("no pixels to take statistics of: the list of images is empty.")
    dtype = np.result_type(*sums)
    if dtype == np.uint16 and np.dtype(np.uint8) in sums:
        sums[np.dtype(np.uint8)] *= [[1], [_FULL_RANGE], [_FULL_RANGE**2]]
    count, total, square = np.sum(list(sums.values()), axis=0)
    mean = total / count
    if not np.isfinite(mean).all():
        raise ValueError("images hold values that are not finite (NaN or infinite): mend or mask them first.")
    std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), str(dtype), "data")
