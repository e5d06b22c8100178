"""Pixel statistics of a set of images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segkit.data.intensity import usable_std

IMAGE_DTYPES = ("uint8", "uint16", "float32")
# 8-bit beside 16-bit is scaled to its full range, as batches are (data/loaders.py, `collate`): 65535 / 255.
_FULL_RANGE = 257
# Values taken from one image: 10,000 pixels, fewer where it has many bands. Of 200 images, they give the mean to about
# a thousandth of the deviation, and the outer half percent is 10,000 pixels.
_PIXELS, _LEAST_PIXELS, _VALUES = 10_000, 1_000, 100_000

Range = tuple[float, float]


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of each band, in stored units (0..255 for 8-bit images).

    Attributes:
        mean: (B,) values.
        std: (B,) values, all positive.
        dtype: of the images they describe: uint8, uint16 or float32.
        source: `encoder` (what the pretrained encoder was trained with), `data` (fitted), `given`, `reading` (images
            come normalised, see `ImageReading`), or `default`.
        clip: (B, 2) smallest and largest value that counts; values beyond become that value first. None clips nothing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"
    source: str = "default"
    clip: tuple[Range, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"pixel statistics need as many positive std as means, got {self.mean} and {self.std}.")
        if self.dtype not in IMAGE_DTYPES:
            raise ValueError(f"pixel statistics for {self.dtype} images: expected one of {', '.join(IMAGE_DTYPES)}.")
        if self.clip is not None:
            object.__setattr__(self, "clip", tuple((float(low), float(high)) for low, high in self.clip))
            if len(self.clip) != len(self.mean) or not all(low <= high for low, high in self.clip):
                raise ValueError(
                    f"pixel statistics of {len(self.mean)} bands need as many (low, high), got {self.clip}."
                )


@dataclass(frozen=True)
class Clipping:
    """Which values count when statistics are fitted; the default is all.

    Attributes:
        percentiles: (low, high) in [0, 100], taken of all training pixels, for each band.
        window: (low, high) in stored units, such as Hounsfield units of a CT.
        eight_bit: also for 8-bit images, whose values end at 0 and 255 anyway.
    """

    percentiles: Range | None = None
    window: Range | None = None
    eight_bit: bool = True

    @property
    def is_asked_for(self) -> bool:
        """False where nothing is clipped, or only by default."""
        return self.eight_bit and (self.percentiles, self.window) != (None, None)

    def ranges(self, values: np.ndarray, dtype: str) -> np.ndarray | None:
        """(B, 2) smallest and largest value of each band that counts, None for all.

        Args:
            values: (pixels, B) sample of images whose widest depth is `dtype`.
        """
        if dtype == "uint8" and not self.eight_bit:
            return None
        if self.window is not None:
            return np.tile(self.window, (values.shape[1], 1))
        if self.percentiles is None:
            return None
        low, high = np.percentile(values, self.percentiles, axis=0)
        # More than 99 % of some microscopes' pixels are one number: percentiles would take all that is to be seen.
        empty = low == high
        low, high = np.where(empty, values.min(0), low), np.where(empty, values.max(0), high)
        return np.column_stack([low, high])


# One hot pixel, or the metal of an implant, must not make all else dark.
DEFAULT_CLIPPING = Clipping((0.5, 99.5), eight_bit=False)


def find_clipping(clip: Sequence[float] | str | None = None, window: Sequence[float] | None = None) -> Clipping:
    """What two options ask for.

    Args:
        clip: (low, high) percentiles; `none` for no clipping; None for 0.5 and 99.5, but not of 8-bit images.
        window: (low, high) in stored units, in place of `clip`.

    Raises:
        ValueError: both, or a pair that is none.
    """
    if clip is not None and window is not None:
        raise ValueError(f"clip is {clip!r} and window is {window!r}: expected one of them, or neither.")
    if window is not None:
        return Clipping(window=_pair("window", window))
    if clip is None:
        return DEFAULT_CLIPPING
    if clip == "none":
        return Clipping()
    low, high = _pair("clip", clip)
    if not 0 <= low < high <= 100:
        raise ValueError(f"clip is {clip!r}: expected percentiles from 0 to 100, such as [0.5, 99.5].")
    return Clipping((low, high))


def pixel_statistics(images: Iterable[np.ndarray], clipping: Clipping = Clipping()) -> PixelStatistics:
    """Mean and standard deviation of each band over all images, and what is clipped before.

    Of large images a sample of pixels is taken, the same in each call, so memory stays small.

    Args:
        images: (H, W, B) arrays of uint8, uint16 or float32, in stored units.
        clipping: mean and deviation are those of the clipped values.

    Returns:
        Statistics with `source` "data", in units of the widest dtype: 8-bit beside 16-bit counts as scaled to its full
        range, integers beside float32 as they are. A band that never changes gets a deviation of 1.

    Raises:
        ValueError: no image, bands that differ, or values that are not finite.
    """
    samples: list[np.ndarray] = []
    for number, image in enumerate(images):
        if samples and image.shape[-1] != samples[0].shape[1]:
            raise ValueError(
                f"images have {samples[0].shape[1]} and {image.shape[-1]} bands: all must have the same number."
            )
        samples.append(_some_pixels(image, number))
    if not any(map(len, samples)):
        raise ValueError("no pixels to take statistics of: the list of images is empty.")
    dtype = np.result_type(*samples)
    values = np.concatenate([_in_depth(sample, dtype) for sample in samples])
    if not np.isfinite(values).all():
        raise ValueError("images hold values that are not finite (NaN or infinite): mend or mask them first.")
    ranges = clipping.ranges(values, str(dtype))
    if ranges is not None:
        values = values.clip(*ranges.T)
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return PixelStatistics(
        mean=tuple(mean.tolist()),
        std=tuple(usable_std(std, mean).tolist()),
        dtype=str(dtype),
        source="data",
        clip=None if ranges is None else tuple((low, high) for low, high in ranges.tolist()),
    )


def _pair(name: str, values: Sequence[float] | str) -> Range:
    if isinstance(values, str) or len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
        raise ValueError(f"{name} is {values!r}: expected [low, high] with low below high.")
    return float(values[0]), float(values[1])


def _some_pixels(image: np.ndarray, number: int) -> np.ndarray:
    """(pixels, B) of an image, all of them where it is small."""
    pixels = image.reshape(-1, image.shape[-1])
    wanted = max(_LEAST_PIXELS, min(_PIXELS, _VALUES // pixels.shape[1]))
    if len(pixels) <= wanted:
        return pixels.copy()
    # At random: a fixed step would meet the same columns, or the same lines of a detector, in every row.
    return pixels[np.random.default_rng(number).integers(len(pixels), size=wanted)]


def _in_depth(sample: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if sample.dtype == np.uint8 and dtype == np.uint16:
        return sample.astype(np.uint16) * np.uint16(_FULL_RANGE)
    return sample.astype(dtype, copy=False)
