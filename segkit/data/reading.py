"""How image files become arrays: the same for training, scoring and predicting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from segkit.data.images import ImageRef, find_images, image_spacing_mm, join_bands, read_image
from segkit.data.intensity import Scale, files_scale, image_scale
from segkit.data.patterns import STEM, Pattern
from segkit.formats.nifti_slices import axis_number, parse_axes
from segkit.formats.volumes import volume_shape

NORMALIZE = ("dataset", "image", "volume")


@dataclass(frozen=True)
class ImageReading:
    """The choices that reading an image leaves open; a bundle keeps them with the model.

    Attributes:
        gray: 8-bit images give one band, not three.
        axis: x, y or z: volumes are cut across it, or across each of several, such as `zyx`.
        pattern: how the files of images are named after their samples, see `Pattern`.
        bands: where the bands of an image lie in a file each: what stands for `{band}` in `pattern`.
        neighbours: so many slices on either side of a slice are further bands of it ("2.5-D").
        normalize: `dataset` leaves values as stored: the model's statistics, of all training images, do the rest.
            `image` brings each band of each image to mean 0 and deviation 1, `volume` each band of each volume, and
            of each image that is no slice of one.
    """

    gray: bool = False
    axis: str = "z"
    pattern: str = STEM
    bands: tuple[str, ...] = ()
    neighbours: int = 0
    normalize: str = "dataset"

    def __post_init__(self) -> None:
        parse_axes(self.axis)
        object.__setattr__(self, "bands", tuple(self.bands))  # a list where it comes from JSON
        _ = self.files
        if self.neighbours < 0:
            raise ValueError(f"neighbours is {self.neighbours}: expected 0, or a number of slices on either side.")
        if self.normalize not in NORMALIZE:
            raise ValueError(
                f"normalize is {self.normalize!r}: expected {', '.join(NORMALIZE[:-1])} or {NORMALIZE[-1]}."
            )

    @cached_property
    def files(self) -> Pattern:
        """`pattern`, with its bands."""
        return Pattern(self.pattern, self.bands)

    @property
    def main_axis(self) -> str:
        """The first axis: answers for volumes are slices across it."""
        return self.axis[0]

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
        """(H, W, B) pixels in stored units, see `read_image`; or float32, normalised as a whole.

        With k `neighbours`, the bands of slice i are those of slice i - k, then those of i - k + 1, and so on to
        i + k: (2 k + 1) B in all. Where the volume ends, its last slice is repeated.

        Raises:
            ValueError: neighbours of an image that is no slice of a volume, and all that `read_image` refuses.
        """
        slices = [self._read_one(near) for near in self._around(ref)]
        return slices[0] if len(slices) == 1 else np.concatenate(slices, axis=2)

    def without_neighbours(self, image: np.ndarray) -> np.ndarray:
        """(H, W, B) of the slice itself, of what `read` gave; what people are shown."""
        bands = image.shape[2] // (2 * self.neighbours + 1)
        return image[..., self.neighbours * bands : (self.neighbours + 1) * bands]

    def spacing_mm(self, ref: ImageRef) -> tuple[float, float] | None:
        """(row, column) distances; see `image_spacing_mm`."""
        return image_spacing_mm(ref)

    def _read_one(self, ref: ImageRef) -> np.ndarray:
        image = read_image(ref, self.gray)
        return image if self.normalize == "dataset" else self._scale(ref, image).apply(image)

    def _scale(self, ref: ImageRef, image: np.ndarray) -> Scale:
        whole = self.normalize == "volume" and ref.axis is not None
        return files_scale(ref.bands or (ref.path,)) if whole else image_scale(image)

    def _around(self, ref: ImageRef) -> list[ImageRef]:
        """The image, between its neighbours."""
        if self.neighbours == 0:
            return [ref]
        if ref.axis is None or ref.index is None:
            raise ValueError(
                f"{ref}: no slice of a volume, so it has no neighbours, of which the model takes {self.neighbours} on "
                "either side. Give volumes, or set `data.neighbours` to 0 and train anew."
            )
        last = volume_shape(ref.path)[axis_number(ref.axis)] - 1
        return [
            replace(ref, index=min(max(ref.index + step, 0), last))
            for step in range(-self.neighbours, self.neighbours + 1)
        ]
