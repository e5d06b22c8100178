"""How image files become arrays: the same for training, scoring and predicting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.images import ImageRef, find_images, image_spacing_mm, read_image
from segkit.formats.nifti_slices import axis_number


@dataclass(frozen=True)
class ImageReading:
    """The choices that reading an image leaves open; a bundle keeps them with the model.

    Attributes:
        gray: 8-bit images give one band, not three.
        axis: x, y or z: volumes are cut across it.
    """

    gray: bool = False
    axis: str = "z"

    def __post_init__(self) -> None:
        axis_number(self.axis)

    def find(self, root: str | Path) -> dict[str, ImageRef]:
        """All images below `root`, by stem; see `find_images`."""
        return find_images(root, self.axis)

    def read(self, ref: ImageRef) -> np.ndarray:
        """(H, W, B) pixels in stored units; see `read_image`."""
        return read_image(ref, self.gray)

    def spacing_mm(self, ref: ImageRef) -> tuple[float, float] | None:
        """(row, column) distances; see `image_spacing_mm`."""
        return image_spacing_mm(ref)
