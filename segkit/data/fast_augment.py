"""Presets without albumentations: crop first, then one warp for all geometry and one matrix for all colours.

They change scale, angle, flips, brightness, contrast, hue and saturation as often and as far as the albumentations
presets `light`, `street` and `medical` do. What differs:

- `fast_medical` has no elastic distortion and no noise.
- Corners that a rotation uncovers show the image around the crop, or its mirror image beyond the border, not black.
- Images shrink by linear interpolation, not by averaging over areas; from half the size on that is nearly the same.
- Saturation is a factor on all colours of the crop, which moves its mean as far as albumentations moves each pixel,
  at most to twice the colour; brightness, contrast and colour are computed at once and cut off at 0 and 255 once.
- Every band of an image that is not 8-bit is changed in units of its own range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from segkit.data.focus import Aim, Focus, find_aim
from segkit.data.intensity import clipped
from segkit.data.sample import Sample
from segkit.data.warp import Move, move_image, move_planes
from segkit.data.windows import place_window, roomy_window, zoomed_window
from segkit.formats.mask_format import MaskFormat

# Of OpenCV's hue and saturation: every 8th pixel of every 8th row tells the mean of a crop.
STEP = 8
MOST_COLOUR = 2.0


@dataclass(frozen=True)
class FastPreset:
    """How often (p, a probability) and how far a preset changes samples.

    Attributes:
        zoom: factors (least, largest) by which the image grows before it is cut to the crop.
        margin: crops keep this distance from the border of the image, as a factor of their size, where there is room.
        flip_x_p, flip_y_p: left and right, or top and bottom, change places.
        turn_p: a random number of quarter turns, for crops that are square.
        affine_p: a rotation between `angles_deg`, and a growth of width and of height between `scales`.
        light_p: contrast times 1 +- `contrast`, brightness plus +- `brightness` of the full range.
        colour_p: hue plus +- `hue_deg` on the colour wheel, distance from gray times 1 +- `saturation` over
            the mean saturation (of 255); 8-bit RGB images only.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    margin: float = 1.0
    flip_x_p: float = 0.5
    flip_y_p: float = 0.0
    turn_p: float = 0.0
    affine_p: float = 0.0
    angles_deg: tuple[float, float] = (0.0, 0.0)
    scales: tuple[float, float] = (1.0, 1.0)
    light_p: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    colour_p: float = 0.0
    hue_deg: float = 0.0
    saturation: float = 0.0


FAST_PRESETS = {
    "fast_light": FastPreset(),
    # OpenCV counts hue in steps of two degrees. Saturation is the distance from gray over the brightest band, which
    # grows as well when that distance does: of 37.5, the 30 of `street` remain.
    "fast_street": FastPreset(
        zoom=(0.5, 2.0), brightness=0.25, contrast=0.25, colour_p=0.3, hue_deg=20.0, saturation=37.5
    ),
    "fast_medical": FastPreset(
        margin=1.3,
        flip_y_p=0.5,
        turn_p=0.75,
        affine_p=0.5,
        angles_deg=(-25.0, 25.0),
        scales=(0.8, 1.25),
        light_p=0.4,
    ),
}


@dataclass(frozen=True)
class Colours:
    """What happens to the values of an image; the defaults change nothing.

    Attributes:
        gain: factor on the distance from the lowest value of the range.
        offset: share of the range that is added.
        hue_deg: turn on the colour wheel, from red towards green; of 8-bit RGB only.
        saturation: the distance from gray grows by this over the mean saturation of the crop, both of 255; of 8-bit RGB
            only.
    """

    gain: float = 1.0
    offset: float = 0.0
    hue_deg: float = 0.0
    saturation: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether a band takes from the others."""
        return self.hue_deg != 0 or self.saturation != 0


class FastAugment:
    """Random changes of a sample by a preset of `FAST_PRESETS`; built by `build_augment`, picklable.

    A cached sample is read and unpacked within the crop only. Images keep their dtype, bands and range, planes hold
    no value that was not there except `ignore_index`.

    Attributes:
        spec: name of the preset.
        crop: (height, width) of every result, or None for the size of the sample.
        focus: what crops are placed on, None for anywhere.
        clip: (low, high) per band, see `clipped`; training sets what the model clips.
    """

    def __init__(self, spec: str, format: MaskFormat, crop: tuple[int, int] | None, focus: Focus | None = None) -> None:
        self.spec, self.crop, self.focus = spec, crop, focus
        self.clip: Sequence[tuple[float, float]] | None = None
        self._preset, self._ignore_index = FAST_PRESETS[spec], format.ignore_index

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """A new sample; a function of (sample, seed) alone."""
        aim = find_aim(self.focus, sample.stored_planes, seed)
        move, colours = draw(self._preset, self.crop or sample.size_hw, sample.size_hw, seed, aim)
        image = clipped(move_image(sample.image, move), self.clip)
        planes = move_planes(sample.stored_planes, move, self._ignore_index)
        return Sample(sample.stem, _change_colours(image, colours), planes, sample.spacing_mm)


def draw(
    preset: FastPreset, size_hw: tuple[int, int], image_hw: tuple[int, int], seed: int, aim: Aim | None = None
) -> tuple[Move, Colours]:
    """What a preset does to one sample; a function of the arguments alone.

    Args:
        size_hw: (height, width) of the result.
        image_hw: (height, width) of the image.
        seed: see `segkit.data.datasets.sample_seed`.
        aim: what the crop is to hold, None for a crop anywhere. All else is drawn as without.
    """
    rng = np.random.default_rng(seed)
    move = _draw_move(preset, size_hw, image_hw, rng)
    if aim is not None:
        move = replace(move, corner=aim.corner(move.window_hw, image_hw))
    return move, _draw_colours(preset, rng)


def turned_from_gray(hue_deg: float) -> np.ndarray:
    """(3, 3) matrix that takes the gray out of a colour and turns what is left about the gray axis."""
    gray = np.full((3, 3), 1 / 3)
    # Rodrigues' formula for the axis (1, 1, 1) / sqrt(3): 120 degrees take red to green, as on the colour wheel.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    angle = np.deg2rad(hue_deg)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * gray
    return turn @ (np.eye(3) - gray)


def _draw_move(
    preset: FastPreset, size_hw: tuple[int, int], image_hw: tuple[int, int], rng: np.random.Generator
) -> Move:
    """Where the pixels of a crop come from."""
    if preset.zoom == (1.0, 1.0):
        roomy = roomy_window(size_hw, image_hw, preset.margin)
        top, left = place_window(roomy, image_hw, rng)
        window = size_hw
        top, left = top + (roomy[0] - size_hw[0]) // 2, left + (roomy[1] - size_hw[1]) // 2
    else:
        window = zoomed_window(size_hw, image_hw, preset.zoom, rng)
        top, left = place_window(window, image_hw, rng)
    # All numbers are drawn, used or not: what one change does never depends on whether another happens.
    flips, turn, affine = rng.random(2) < (preset.flip_x_p, preset.flip_y_p), rng.random(), rng.random()
    quarters, angle = int(rng.integers(4)), rng.uniform(*preset.angles_deg)
    scales = rng.uniform(*preset.scales, size=2)
    return Move(
        corner=(top, left),
        window_hw=window,
        size_hw=size_hw,
        flip_x=bool(flips[0]),
        flip_y=bool(flips[1]),
        quarters=quarters if turn < preset.turn_p and size_hw[0] == size_hw[1] else 0,
        angle_deg=angle if affine < preset.affine_p else 0.0,
        scale_xy=(scales[0], scales[1]) if affine < preset.affine_p else (1.0, 1.0),
    )


def _draw_colours(preset: FastPreset, rng: np.random.Generator) -> Colours:
    light, colour = rng.random(2) < (preset.light_p, preset.colour_p)
    gain, offset = 1 + rng.uniform(-1, 1) * preset.contrast, rng.uniform(-1, 1) * preset.brightness
    hue_deg, saturation = rng.uniform(-1, 1, 2) * (preset.hue_deg, preset.saturation)
    return Colours(
        gain=gain if light else 1.0,
        offset=offset if light else 0.0,
        hue_deg=float(hue_deg) if colour else 0.0,
        saturation=float(saturation) if colour else 0.0,
    )


def _change_colours(image: np.ndarray, colours: Colours) -> np.ndarray:
    """Brightness and contrast, and hue and saturation where the image is 8-bit RGB."""
    gain, offset = colours.gain, colours.offset
    light = (gain, offset) != (1.0, 0.0)
    if image.dtype != np.uint8:
        return _in_own_range(image, gain, offset) if light else image
    if image.shape[2] == 3 and (light or colours.mixes):
        mixing = _mixing(image, colours) if colours.mixes else np.eye(3)
        # Gray stays gray in `mixing`, so it commutes with the offset.
        return cv2.transform(image, np.column_stack([gain * mixing, np.full(3, offset * 255)]))
    if light:
        table = np.clip(np.rint(np.arange(256) * gain + offset * 255), 0, 255).astype(np.uint8)
        return cv2.LUT(image, table).reshape(image.shape)
    return image


def _mixing(image: np.ndarray, colours: Colours) -> np.ndarray:
    """(3, 3) matrix that turns colours about the gray axis and stretches them away from it."""
    few = image[::STEP, ::STEP].reshape(-1, 3).astype(np.float32)
    largest, smallest = few.max(1), few.min(1)
    mean = float(np.mean(255 * (largest - smallest) / np.maximum(largest, 1)))
    factor = np.clip(1 + colours.saturation / max(mean, 1.0), 0, MOST_COLOUR)
    return np.full((3, 3), 1 / 3) + factor * turned_from_gray(colours.hue_deg)


def _in_own_range(image: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """Brightness and contrast of each band between its smallest and its largest value."""
    low = image.min((0, 1)).astype(np.float32)
    high = image.max((0, 1)).astype(np.float32)
    changed = (image - low) * np.float32(gain) + (low + np.float32(offset) * (high - low))
    np.clip(changed, low, high, out=changed)
    return (changed if image.dtype == np.float32 else np.rint(changed)).astype(image.dtype, copy=False)
