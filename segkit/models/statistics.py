"""Pixel statistics of a set of images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from segkit.models.segmenter import PixelStatistics


def pixel_statistics(images: Iterable[np.ndarray]) -> PixelStatistics:
    """Mean and standard deviation of each band over all pixels of all images.

    Args:
        images: (H, W, B) arrays of one dtype, uint8, uint16 or float32, in stored units.

    Returns:
        Statistics with `source` "data". A band that never changes gets a deviation of 1.

    Raises:
        ValueError: no image, bands that differ, or values that are not finite.
    """
    count, dtype = 0, np.dtype(np.uint8)
    total = square = np.empty(0)
    for image in images:
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
        if count == 0:
            total, square, dtype = np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1]), image.dtype
        if pixels.shape[1] != len(total):
            raise ValueError(f"images have {len(total)} and {pixels.shape[1]} bands: all must have the same number.")
        count += len(pixels)
        total += pixels.sum(0)
        square += (pixels**2).sum(0)
    if count == 0:
        raise ValueError("no pixels to take statistics of: the list of images is empty.")
    mean = total / count
    if not np.isfinite(mean).all():
        raise ValueError("images hold values that are not finite (NaN or infinite): mend or mask them first.")
    std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), str(dtype), "data")
