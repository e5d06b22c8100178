"""How image files become arrays: the same for training, scoring and predicting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.images import ImageRef, find_images, image_spacing_mm, read_image
from segkit.data.intensity import file_scale, image_scale
from segkit.formats.nifti_slices import axis_number

NORMALIZE = ("dataset", "image", "volume")


@dataclass(frozen=True)
class ImageReading:
    """The choices that reading an image leaves open; a bundle keeps them with the model.

    Attributes:
        gray: 8-bit images give one band, not three.
        axis: x, y or z: volumes are cut across it.
        normalize: `dataset` leaves values as stored: the model's statistics, of all training images, do the rest.
            `image` brings each band of each image to mean 0 and deviation 1, `volume` each band of each volume, and
            of each image that is no slice of one.
    """

    gray: bool = False
    axis: str = "z"
    normalize: str = "dataset"

    def __post_init__(self) -> None:
        axis_number(self.axis)
        if self.normalize not in NORMALIZE:
            raise ValueError(
                f"normalize is {self.normalize!r}: expected {', '.join(NORMALIZE[:-1])} or {NORMALIZE[-1]}."
            )

    def find(self, root: str | Path) -> dict[str, ImageRef]:
        """All images below `root`, by stem; see `find_images`."""
        return find_images(root, self.axis)

    def read(self, ref: ImageRef) -> np.ndarray:
        """(H, W, B) pixels in stored units, see `read_image`; or float32, normalised as a whole."""
        image = read_image(ref, self.gray)
        if self.normalize == "dataset":
            return image
        whole = self.normalize == "volume" and ref.axis is not None
        scale = file_scale(ref.path) if whole else image_scale(image)
        return scale.apply(image)

    def spacing_mm(self, ref: ImageRef) -> tuple[float, float] | None:
        """(row, column) distances; see `image_spacing_mm`."""
        return image_spacing_mm(ref)
