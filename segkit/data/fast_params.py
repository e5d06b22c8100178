"""The `fast_*` augmentations as numbers: which presets there are, what is drawn for a sample, and as which matrices.

Only NumPy and no pixels: every path that applies the presets draws here, so that all of them mean the same.
A sample is changed by one affine sampling of image and planes, and one colour matrix:

    window of the stored image, mirrored beyond its border -> resized to the crop -> flipped -> quarter turns
    -> scaled and rotated about its centre                 -> colours
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# How far a window may reach beyond a small image, as a share of the image's side.
_MAX_WINDOW = 1.5
# Parts of a colour: its gray, and its distance from gray turned by a right angle about the gray axis.
_GRAY = np.full((3, 3), 1 / 3)
_TURNED = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)


@dataclass(frozen=True)
class FastPreset:
    """Ranges and shares of what is drawn; the defaults change nothing but the place of the crop.

    Attributes:
        hflip, vflip: share of samples mirrored left to right, and top to bottom.
        turns: share of square crops turned by 0, 1, 2 or 3 right angles.
        window_scale: factors (least, largest) by which the image grows before it is cut; small and large are
            equally likely.
        margin: windows stay so far from the border, where the image has room, that a cut larger by this factor
            would fit: rotated corners then show image and not filling.
        affine: share of samples that are scaled and rotated.
        scale: factors (least, largest) for rows and columns, drawn apart.
        rotation_deg: largest angle to either side.
        light: share of samples whose brightness and contrast change.
        brightness, contrast: largest change, as a share of the range of values, and of the contrast.
        color: share of RGB samples whose hue and saturation change.
        saturation: largest change, as a share.
        hue_deg: largest turn to either side, of 360.
    """

    hflip: float = 0.0
    vflip: float = 0.0
    turns: float = 0.0
    window_scale: tuple[float, float] = (1.0, 1.0)
    margin: float = 1.0
    affine: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotation_deg: float = 0.0
    light: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    color: float = 0.0
    saturation: float = 0.0
    hue_deg: float = 0.0


# Ranges and shares of `light`, `street` and `medical` in segkit.data.augment; `medical` without its grid distortion and
# its noise, which are no affine map. HueSaturationValue adds up to 30 of 255 to the saturation, which no matrix does:
# that multiplies the colour of COCO's images by 0.7 to 1.3, and of CamVid's dull ones by 0.35 to 2.
FAST_PRESETS = {
    "fast_light": FastPreset(hflip=0.5, light=0.5, brightness=0.2, contrast=0.2),
    "fast_street": FastPreset(
        hflip=0.5,
        window_scale=(0.5, 2.0),
        light=0.5,
        brightness=0.25,
        contrast=0.25,
        color=0.3,
        saturation=0.5,
        hue_deg=20.0,
    ),
    "fast_medical": FastPreset(
        hflip=0.5,
        vflip=0.5,
        turns=0.75,
        margin=1.3,
        affine=0.5,
        scale=(0.8, 1.25),
        rotation_deg=25.0,
        light=0.4,
        brightness=0.2,
        contrast=0.2,
    ),
}


@dataclass(frozen=True)
class FastParams:
    """What is done to one sample; the defaults change nothing.

    Attributes:
        window: (top, left, height, width) in pixels of the stored image; may reach beyond its border.
        hflip, vflip: mirrored left to right, top to bottom.
        quarter_turns: right angles, counter-clockwise, 0 to 3.
        scale_hw: factors by which rows and columns grow about the centre of the crop.
        rotation_deg: then counter-clockwise about the centre of the crop.
        brightness: share of the range of values that is added.
        contrast: factor on the distance from the lowest value of the range.
        saturation: factor on the distance from gray; of RGB only.
        hue_deg: turn of the hue from red towards green; of RGB only.
    """

    window: tuple[int, int, int, int]
    hflip: bool = False
    vflip: bool = False
    quarter_turns: int = 0
    scale_hw: tuple[float, float] = (1.0, 1.0)
    rotation_deg: float = 0.0
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_deg: float = 0.0

    def source_matrix(self, crop_hw: tuple[int, int]) -> np.ndarray:
        """(2, 3) float64 M: pixel (x, y) of the crop shows the stored image at M @ (x, y, 1).

        Whole numbers are centres of pixels. Without scaling and rotation the numbers are exact, and the window as
        large as the crop gives whole ones.
        """
        top, left, height, width = self.window
        (crop_h, crop_w), (grow_y, grow_x) = crop_hw, self.scale_hw
        # From the crop back to the window, so in reverse order; x grows to the right and y down.
        angle = math.radians(self.rotation_deg)
        cos, sin = math.cos(angle), math.sin(angle)
        linear = np.array([[cos / grow_x, -sin / grow_x], [sin / grow_y, cos / grow_y]])
        for _ in range(self.quarter_turns):
            linear = np.array([[0.0, -1.0], [1.0, 0.0]]) @ linear
        linear *= np.array([[-1.0 if self.hflip else 1.0], [-1.0 if self.vflip else 1.0]])
        linear *= np.array([[width / crop_w], [height / crop_h]])
        crop_centre = np.array([(crop_w - 1) / 2, (crop_h - 1) / 2])
        window_centre = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
        return np.column_stack([linear, window_centre - linear @ crop_centre])

    def color_matrix(self, bands: int) -> np.ndarray:
        """(B, B) float64 of contrast, saturation and hue; rows sum to `contrast`, as gray stays gray.

        With `low` and `high` the range of values (0 and 255 of uint8, else those of the image), new values are
        matrix @ values + low * (1 - contrast) + brightness * (high - low), cut off at `low` and `high`.
        """
        if bands != 3 or (self.saturation == 1.0 and self.hue_deg == 0.0):
            return np.eye(bands) * self.contrast
        angle = math.radians(self.hue_deg)
        # About the gray axis, where an angle is within 1.2 degrees of the hue of HSV.
        turned = math.cos(angle) * (np.eye(3) - _GRAY) + math.sin(angle) * _TURNED
        return self.contrast * (_GRAY + self.saturation * turned)


def draw(preset: FastPreset, size_hw: tuple[int, int], crop_hw: tuple[int, int] | None, seed: int) -> FastParams:
    """What is done to a sample; a function of the arguments alone.

    Args:
        size_hw: (height, width) of the stored image.
        crop_hw: (height, width) of the result, None for `size_hw`.
        seed: see `segkit.data.datasets.sample_seed`.
    """
    # All at once and each in its own place, so that no choice shifts the numbers of another.
    (
        zoom,
        top,
        left,
        hflip,
        vflip,
        turns,
        turn,
        affine,
        rows,
        columns,
        angle,
        light,
        gain,
        offset,
        color,
        grayer,
        hue,
    ) = np.random.default_rng(seed).random(17).tolist()
    crop = crop_hw or size_hw
    turned = crop[0] == crop[1] and turns < preset.turns
    affine, light, color = affine < preset.affine, light < preset.light, color < preset.color
    return FastParams(
        window=_window(preset, size_hw, crop, zoom, (top, left)),
        hflip=hflip < preset.hflip,
        vflip=vflip < preset.vflip,
        quarter_turns=int(turn * 4) if turned else 0,
        scale_hw=(_between(preset.scale, rows), _between(preset.scale, columns)) if affine else (1.0, 1.0),
        rotation_deg=_either_side(preset.rotation_deg, angle) if affine else 0.0,
        brightness=_either_side(preset.brightness, offset) if light else 0.0,
        contrast=1.0 + _either_side(preset.contrast, gain) if light else 1.0,
        saturation=1.0 + _either_side(preset.saturation, grayer) if color else 1.0,
        hue_deg=_either_side(preset.hue_deg, hue) if color else 0.0,
    )


def _window(
    preset: FastPreset, size_hw: tuple[int, int], crop_hw: tuple[int, int], zoom: float, place: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width), as `segkit.data.augment` cuts before its transforms."""
    least, largest = preset.window_scale
    if largest > least:
        covering = min(1.0, max(new / old for new, old in zip(crop_hw, size_hw, strict=True)))
        least = max(least, covering / _MAX_WINDOW)
        # Logarithmic: half as large is as likely as twice as large.
        factor = math.exp(_between((math.log(least), math.log(largest)), zoom))
        window = wide = max(1, round(crop_hw[0] / factor)), max(1, round(crop_hw[1] / factor))
    else:
        room = min(old / new for new, old in zip(crop_hw, size_hw, strict=True))
        factor = max(1.0, min(preset.margin, room))
        window, wide = crop_hw, (int(crop_hw[0] * factor), int(crop_hw[1] * factor))
    starts = []
    for inner, outer, side, u in zip(window, wide, size_hw, place, strict=True):
        first, last = sorted((0, side - outer))
        starts.append(first + int(u * (last - first + 1)) + (outer - inner) // 2)
    return starts[0], starts[1], window[0], window[1]


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u


def _either_side(largest: float, u: float) -> float:
    return (2.0 * u - 1.0) * largest
