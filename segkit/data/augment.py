"""Random changes of training samples: presets, lists of transforms, and crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segkit.data.fast_augment import FAST_PRESETS, FastAugment
from segkit.data.focus import Aim, Focus, build_focus, find_aim
from segkit.data.images import resize_image, resize_planes
from segkit.data.intensity import clipped
from segkit.data.packed import PackedPlanes
from segkit.data.sample import Sample
from segkit.data.transform_list import Pipeline, entry_name
from segkit.data.windows import cut_image, cut_planes, place_window, roomy_window, zoomed_window
from segkit.formats.mask_format import MaskFormat
from segkit.suggest import closest

# Of the grid that `medical` distorts; albumentations divides by zero where a cell is smaller than a pixel.
_GRID_STEPS = 5


@dataclass(frozen=True)
class Preset:
    """Transforms under a name.

    Attributes:
        transforms: as in a config. Those of `_COLOUR_ONLY` are left out for images that are not RGB, those of
            `_SQUARE_ONLY` for crops that are not square, those of `_GRID_ONLY` for images with fewer rows or columns
            than a grid has.
        scale: factors (least, largest) by which the image grows before it is cut to the crop.
        margin: the cut before the transforms is larger than the crop by this factor, so that rotated corners
            show image and not filling.
    """

    transforms: tuple[Any, ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)
    margin: float = 1.0


PRESETS = {
    "none": Preset(),
    "light": Preset(("HorizontalFlip", {"RandomBrightnessContrast": {"p": 0.5}})),
    "street": Preset(
        (
            "HorizontalFlip",
            {"RandomBrightnessContrast": {"brightness_limit": 0.25, "contrast_limit": 0.25, "p": 0.5}},
            {
                "HueSaturationValue": {
                    "hue_shift_limit": 10,
                    "sat_shift_limit": 30,
                    "val_shift_limit": 0,
                    "p": 0.3,
                }
            },
        ),
        scale=(0.5, 2.0),
    ),
    "medical": Preset(
        (
            "HorizontalFlip",
            "VerticalFlip",
            {"RandomRotate90": {"p": 0.75}},
            {"Affine": {"rotate": [-25, 25], "scale": [0.8, 1.25], "p": 0.5}},
            # As elastic as ElasticTransform is at 512 x 512, in a quarter of its 35 ms (one core of a server CPU).
            {"GridDistortion": {"num_steps": _GRID_STEPS, "distort_limit": 0.2, "p": 0.2}},
            {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.4}},
            {"GaussNoise": {"std_range": [0.01, 0.05], "p": 0.15}},
        ),
        margin=1.3,
    ),
}

_COLOUR_ONLY = {"HueSaturationValue"}
_SQUARE_ONLY = {"RandomRotate90"}
_GRID_ONLY = {"GridDistortion"}


class Augment:
    """Random changes of a sample; built by `build_augment`, picklable.

    Attributes:
        spec: preset name or list of transforms, as given.
        crop: (height, width) of every result, or None for the size of the sample.
        focus: what crops are placed on, None for anywhere.
        clip: (low, high) per band, see `clipped`; training sets what the model clips.
    """

    def __init__(
        self,
        spec: str | Sequence[Any],
        format: MaskFormat,
        crop: tuple[int, int] | None,
        focus: Focus | None = None,
    ) -> None:
        self.spec, self.crop, self.focus = spec, crop, focus
        self.clip: Sequence[tuple[float, float]] | None = None
        self._ignore_index, self._dtype = format.ignore_index, format.dtype
        self._preset = PRESETS[spec] if isinstance(spec, str) else None
        self._pipelines: dict[tuple[bool, bool, bool], Pipeline | None] = {}
        for shape in ((8, 8, 3), (8, 9, 1)):
            self._pipeline(shape)  # mistakes in the list are known now, not in the first batch

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """A new sample; a function of (sample, seed) alone."""
        rng = np.random.default_rng(seed)
        image, planes = self._cut_first(sample, rng, seed)
        image = clipped(image, self.clip)
        pipeline = self._pipeline(image.shape)
        if pipeline is not None:
            if not image.flags.writeable:  # mapped from a file; transforms may work in place
                image = image.copy()
            try:
                image, planes = pipeline(image, planes, seed)
            except Exception as error:  # albumentations and OpenCV raise many kinds
                raise ValueError(f"{sample.stem}: augment cannot be applied to this sample: {error}") from error
        if self.crop is not None and image.shape[:2] != self.crop:
            if self._preset is None:
                image, planes = self._cut(image, planes, self.crop, rng, find_aim(self.focus, planes, seed))
            else:  # the window was placed at random; its margin goes
                corner = (image.shape[0] - self.crop[0]) // 2, (image.shape[1] - self.crop[1]) // 2
                image = cut_image(image, corner, self.crop)
                planes = cut_planes(planes, corner, self.crop, self._ignore_index)
        return Sample(sample.stem, np.ascontiguousarray(image), np.ascontiguousarray(planes), sample.spacing_mm)

    def __getstate__(self) -> dict[str, Any]:
        # Built anew in each process: unpickling them would import albumentations, which asks the network.
        return {**self.__dict__, "_pipelines": {}}

    def _cut_first(self, sample: Sample, rng: np.random.Generator, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The cut that comes before the transforms: cheaper, as they see fewer pixels."""
        preset = self._preset
        # A list may hold rotations or scalings, so its crop is taken from the result.
        if preset is None or (self.crop is None and preset.scale == (1.0, 1.0)):
            return sample.image, sample.planes
        size_hw, aim = self.crop or sample.size_hw, find_aim(self.focus, sample.stored_planes, seed)
        if preset.scale == (1.0, 1.0):
            window = roomy_window(size_hw, sample.size_hw, preset.margin)
            return self._cut(sample.image, sample.stored_planes, window, rng, aim, size_hw)
        window = zoomed_window(size_hw, sample.size_hw, preset.scale, rng)
        image, planes = self._cut(sample.image, sample.stored_planes, window, rng, aim)
        return resize_image(image, size_hw), resize_planes(planes, size_hw)

    def _cut(
        self,
        image: np.ndarray,
        planes: np.ndarray | PackedPlanes,
        window_hw: tuple[int, int],
        rng: np.random.Generator,
        aim: Aim | None,
        inner_hw: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A window at random, or one whose middle of size `inner_hw` holds what is aimed at."""
        image_hw = image.shape[0], image.shape[1]
        corner = place_window(window_hw, image_hw, rng)
        if aim is not None:
            corner = aim.corner(window_hw, image_hw, inner_hw)
        return cut_image(image, corner, window_hw), cut_planes(planes, corner, window_hw, self._ignore_index)

    def _pipeline(self, shape: tuple[int, ...]) -> Pipeline | None:
        colour, square = shape[2] == 3, shape[0] == shape[1]
        grid = min(shape[:2]) >= _GRID_STEPS
        key = colour, square, grid
        if key not in self._pipelines:
            if self._preset is None:
                entries = list(self.spec)
            else:
                rules = ((colour, _COLOUR_ONLY), (square, _SQUARE_ONLY), (grid, _GRID_ONLY))
                without = {name for fits, names in rules if not fits for name in names}
                entries = [e for e in self._preset.transforms if entry_name(e) not in without]
            self._pipelines[key] = Pipeline(entries, self._dtype) if entries else None
        return self._pipelines[key]


def build_augment(
    spec: str | Sequence[Any] | None,
    format: MaskFormat,
    crop: int | Sequence[int] | None = None,
    focus: float | Mapping[str, Any] | None = None,
) -> Augment | FastAugment:
    """Augmentation from the name of a preset or a list of albumentations transforms.

    Args:
        spec: `none`, `light`, `street`, `medical`; `fast_light`, `fast_street`, `fast_medical`, which need no
            albumentations, see `FastAugment`; or a list such as
            `["HorizontalFlip", {"GaussNoise": {"p": 0.3}}, {"OneOf": {"transforms": [...], "p": 0.5}}]`.
            `fill_mask` and `mask_interpolation` are always *ignored* and nearest, whatever the list says.
        format: what the masks mean.
        crop: side of a square, or [height, width], cut at random; smaller images are mirrored at their borders,
            where the planes are *ignored*.
        focus: share of the crops that are placed on foreground; or `share` and `classes`, see `build_focus`. None
            places all crops anywhere.

    Raises:
        ValueError: an unknown preset, transform or argument (with the closest known name), a transform that does not
            fit segmentation training, or a focus without a crop.
    """
    aimed = build_focus(focus, format)
    if aimed is not None and crop is None:
        raise ValueError("focus says where crops are placed, and there is no crop: set `crop` as well.")
    if spec is None:
        spec = "none"
    if isinstance(spec, str) and spec in FAST_PRESETS:
        return FastAugment(spec, format, _crop_size(crop), aimed)
    if isinstance(spec, str) and spec not in PRESETS:
        raise ValueError(
            f"augment is {spec!r}: expected the name of a preset, or a list of albumentations transforms. "
            f"{closest(spec, [*PRESETS, *FAST_PRESETS])}"
        )
    if not isinstance(spec, str) and not isinstance(spec, Sequence):
        raise ValueError(f"augment is {spec!r}: expected the name of a preset, or a list of transforms.")
    return Augment(spec if isinstance(spec, str) else list(spec), format, _crop_size(crop), aimed)


def _crop_size(crop: int | Sequence[int] | None) -> tuple[int, int] | None:
    if crop is None:
        return None
    size = (crop, crop) if isinstance(crop, int) else tuple(crop) if isinstance(crop, Sequence) else ()
    if len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise ValueError(f"crop is {crop!r}: expected the side of a square or [height, width], in pixels.")
    return size[0], size[1]
