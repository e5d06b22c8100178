"""How image files become arrays: the same for training, scoring and predicting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from segkit.data.images import ImageRef, find_images, image_spacing_mm, join_bands, read_image
from segkit.data.patterns import STEM, Pattern
from segkit.formats.nifti_slices import axis_number


@dataclass(frozen=True)
class ImageReading:
    """The choices that reading an image leaves open; a bundle keeps them with the model.

    Attributes:
        gray: 8-bit images give one band, not three.
        axis: x, y or z: volumes are cut across it.
        pattern: how the files of images are named after their samples, see `Pattern`.
        bands: where the bands of an image lie in a file each: what stands for `{band}` in `pattern`.
    """

    gray: bool = False
    axis: str = "z"
    pattern: str = STEM
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        axis_number(self.axis)
        object.__setattr__(self, "bands", tuple(self.bands))  # a list where it comes from JSON
        _ = self.files

    @cached_property
    def files(self) -> Pattern:
        """`pattern`, with its bands."""
        return Pattern(self.pattern, self.bands)

    def named(self, pattern: str | None, bands: Sequence[str] | None) -> ImageReading:
        """The same reading of files that are named by `pattern`, with these `bands`; None stays as it is."""
        return replace(
            self,
            pattern=self.pattern if pattern is None else pattern,
            bands=self.bands if bands is None else tuple(bands),
        )

    def for_new_images(self) -> ImageReading:
        """The same reading of images that are named in any way; bands in a file each are told apart all the same."""
        return self if self.bands else replace(self, pattern=STEM)

    def find(self, root: str | Path) -> dict[str, ImageRef]:
        """All images below `root` whose files match the pattern, by the stem of their sample; see `find_images`."""
        return join_bands(find_images(root, self.axis), self.files)

    def read(self, ref: ImageRef) -> np.ndarray:
        """(H, W, B) pixels in stored units; see `read_image`."""
        return read_image(ref, self.gray)

    def spacing_mm(self, ref: ImageRef) -> tuple[float, float] | None:
        """(row, column) distances; see `image_spacing_mm`."""
        return image_spacing_mm(ref)
