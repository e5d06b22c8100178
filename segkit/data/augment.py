"""Random changes of training samples: presets, lists of transforms, and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segkit.data.images import resize_image, resize_planes
from segkit.data.sample import Sample
from segkit.data.transform_list import Pipeline, entry_name
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
# How far the window of a street crop may reach beyond a small image, as a share of the image's side.
_MAX_WINDOW = 1.5


class Augment:
    """Random changes of a sample; built by `build_augment`, picklable.

    Attributes:
        spec: preset name or list of transforms, as given.
        crop: (height, width) of every result, or None for the size of the sample.
    """

    def __init__(self, spec: str | Sequence[Any], format: MaskFormat, crop: tuple[int, int] | None) -> None:
        self.spec, self.crop = spec, crop
        self._ignore_index, self._dtype = format.ignore_index, format.dtype
        self._preset = PRESETS[spec] if isinstance(spec, str) else None
        self._pipelines: dict[tuple[bool, bool, bool], Pipeline | None] = {}
        for shape in ((8, 8, 3), (8, 9, 1)):
            self._pipeline(shape)  # mistakes in the list are known now, not in the first batch

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """A new sample; a function of (sample, seed) alone."""
        rng = np.random.default_rng(seed)
        image, planes = self._cut_first(sample.image, sample.planes, rng)
        pipeline = self._pipeline(image.shape)
        if pipeline is not None:
            try:
                image, planes = pipeline(image, planes, seed)
            except Exception as error:  # albumentations and OpenCV raise many kinds
                raise ValueError(f"{sample.stem}: augment cannot be applied to this sample: {error}") from error
        if self.crop is not None and image.shape[:2] != self.crop:
            centre = self._preset is not None
            image, planes = _cut(image, planes, self.crop, self.crop, self._ignore_index, rng, centre)
        return Sample(sample.stem, np.ascontiguousarray(image), np.ascontiguousarray(planes), sample.spacing_mm)

    def __getstate__(self) -> dict[str, Any]:
        # Built anew in each process: unpickling them would import albumentations, which asks the network.
        return {**self.__dict__, "_pipelines": {}}

    def _cut_first(
        self, image: np.ndarray, planes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cut that comes before the transforms: cheaper, as they see fewer pixels."""
        if self._preset is None:
            return image, planes  # a list may hold rotations or scalings, so its crop is taken from the result
        size_hw = self.crop or (image.shape[0], image.shape[1])
        least, largest = self._preset.scale
        if largest > least:
            covering = min(1.0, max(new / old for new, old in zip(size_hw, image.shape[:2], strict=True)))
            least = max(least, covering / _MAX_WINDOW)
            # Logarithmic: half as large is as likely as twice as large.
            factor = float(np.exp(rng.uniform(np.log(least), np.log(largest))))
            window = max(1, round(size_hw[0] / factor)), max(1, round(size_hw[1] / factor))
            return _cut(image, planes, window, size_hw, self._ignore_index, rng)
        if self.crop is None:
            return image, planes
        # As much wider as the image allows, in the shape of the crop: a square stays one, for quarter turns.
        room = min(old / new for new, old in zip(size_hw, image.shape[:2], strict=True))
        factor = max(1.0, min(self._preset.margin, room))
        window = int(size_hw[0] * factor), int(size_hw[1] * factor)
        return _cut(image, planes, window, window, self._ignore_index, rng)

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
    spec: str | Sequence[Any] | None, format: MaskFormat, crop: int | Sequence[int] | None = None
) -> Augment:
    """Augmentation from the name of a preset or a list of albumentations transforms.

    Args:
        spec: `none`, `light`, `street`, `medical`, or a list such as
            `["HorizontalFlip", {"GaussNoise": {"p": 0.3}}, {"OneOf": {"transforms": [...], "p": 0.5}}]`.
            `fill_mask` and `mask_interpolation` are always *ignored* and nearest, whatever the list says.
        format: what the masks mean.
        crop: side of a square, or [height, width], cut at random; smaller images are mirrored at their borders,
            where the planes are *ignored*.

    Raises:
        ValueError: an unknown preset, transform or argument (with the closest known name), or a transform that
            does not fit segmentation training.
    """
    if spec is None:
        spec = "none"
    if isinstance(spec, str) and spec not in PRESETS:
        raise ValueError(
            f"augment is {spec!r}: expected the name of a preset, or a list of albumentations transforms. "
            f"{closest(spec, PRESETS)}"
        )
    if not isinstance(spec, str) and not isinstance(spec, Sequence):
        raise ValueError(f"augment is {spec!r}: expected the name of a preset, or a list of transforms.")
    return Augment(spec if isinstance(spec, str) else list(spec), format, _crop_size(crop))


def _cut(
    image: np.ndarray,
    planes: np.ndarray,
    window_hw: tuple[int, int],
    size_hw: tuple[int, int],
    ignore_index: int,
    rng: np.random.Generator,
    centre: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A random window, resized to `size_hw`; beyond the border the image is mirrored and the planes are ignored."""
    import cv2

    starts = []
    for window, side in zip(window_hw, image.shape[:2], strict=True):
        least, most = sorted((0, side - window))
        starts.append((side - window) // 2 if centre else int(rng.integers(least, most + 1)))
    (top, left), (height, width), (rows, columns) = starts, window_hw, image.shape[:2]
    bands = image.shape[2]
    image, planes = (a[max(0, top) : top + height, max(0, left) : left + width] for a in (image, planes))
    if image.shape[:2] != window_hw:
        above, before = max(0, -top), max(0, -left)
        below, after = max(0, top + height - rows), max(0, left + width - columns)
        if bands <= 4:
            image = cv2.copyMakeBorder(image, above, below, before, after, cv2.BORDER_REFLECT_101)
            image = image.reshape(height, width, bands)
        else:  # OpenCV holds few bands
            image = np.pad(image, ((above, below), (before, after), (0, 0)), mode="reflect")
        inside, planes = planes, np.full((height, width, planes.shape[2]), ignore_index, planes.dtype)
        planes[above : height - below, before : width - after] = inside
    if window_hw != size_hw:
        image, planes = resize_image(image, size_hw), resize_planes(planes, size_hw)
    return image, planes


def _crop_size(crop: int | Sequence[int] | None) -> tuple[int, int] | None:
    if crop is None:
        return None
    size = (crop, crop) if isinstance(crop, int) else tuple(crop) if isinstance(crop, Sequence) else ()
    if len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise ValueError(f"crop is {crop!r}: expected the side of a square or [height, width], in pixels.")
    return size[0], size[1]
