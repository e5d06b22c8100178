"""Post-processing by name, applied to decoded planes of whole images and volumes; the steps are in `models.steps`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from segkit.data.datasets import MaskDataset
from segkit.data.splits import case_of
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import axis_number, parse_slice_stem
from segkit.formats.volumes import is_volume, volume_grid
from segkit.models.steps import Steps

T = TypeVar("T")


def postprocess(
    planes: np.ndarray, steps: Steps, format: MaskFormat, spacing_mm: Sequence[float] | None = None
) -> np.ndarray:
    """Planes after all steps, one after the other; the same array where there are none.

    Args:
        planes: (H, W, P), or (D, H, W, P) of a volume, whose regions then hang together across slices.
        spacing_mm: distances along the axes but the last, where known.

    Raises:
        ValueError: a size in millimetres, and no spacing.
    """
    if not steps:
        return planes
    changed = planes.copy()
    for step in steps:
        step.apply(changed, format, spacing_mm)
    return changed


@dataclass(frozen=True)
class Whole:
    """What is post-processed together: an image, or the slices of a volume that a data set holds.

    Attributes:
        numbers: of the samples, in the order of the slices.
        is_volume: regions hang together across slices, even if there is but one.
    """

    numbers: list[int]
    is_volume: bool

    def apply(
        self, slices: Sequence[np.ndarray], steps: Steps, format: MaskFormat, spacing_mm: Sequence[float] | None
    ) -> list[np.ndarray]:
        """Planes (H, W, P) of each slice after all steps; `spacing_mm` as `whole_spacing_mm` tells it."""
        if self.is_volume:
            return list(postprocess(np.stack(slices), steps, format, spacing_mm))
        return [postprocess(planes, steps, format, spacing_mm) for planes in slices]


def planes_of(pred: Tensor, format: MaskFormat) -> list[np.ndarray]:
    """(H, W, P) planes of `format.dtype` of each image of (N, P, H, W) decoded ones."""
    moved = pred.permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(planes, dtype=format.dtype) for planes in moved]


def find_wholes(data: MaskDataset) -> list[Whole]:
    """Every sample in one whole, in the order in which they come first."""
    found: dict[tuple[str, str], list[int]] = {}
    alone: dict[str, int] = {}
    for number, stem in enumerate(data.stems):
        if case_of(stem) is not None and is_volume(data.image_path(number)):
            case, axis, _ = parse_slice_stem(stem)
            found.setdefault((case, axis), []).append(number)
        else:
            alone[stem] = number
    volumes = [Whole(sorted(numbers, key=lambda n: slice_number(data.stems[n])), True) for numbers in found.values()]
    wholes = [*volumes, *(Whole([number], False) for number in alone.values())]
    return sorted(wholes, key=lambda whole: min(whole.numbers))


class Gathering(Generic[T]):
    """Puts what belongs to the samples of a whole together, as they come.

    Args:
        wholes: every sample that will come is in one of them.
    """

    def __init__(self, wholes: Iterable[Whole]) -> None:
        self._whole_of = {number: whole for whole in wholes for number in whole.numbers}
        self._held: dict[int, T] = {}

    def add(self, number: int, item: T) -> tuple[Whole, list[T]] | None:
        """The whole that this was the last sample of, with the items of all in their order; None if others miss."""
        whole = self._whole_of[number]
        self._held[number] = item
        if not all(number in self._held for number in whole.numbers):
            return None
        return whole, [self._held.pop(number) for number in whole.numbers]


def slice_number(stem: str) -> int:
    """17 for `case@z017`."""
    return parse_slice_stem(stem)[2]


def whole_spacing_mm(data: MaskDataset, whole: Whole, spacing_mm: Sequence[float] | None) -> Sequence[float] | None:
    """Distances along the axes of a whole: (row, column) of an image, (slice, row, column) of a volume.

    Args:
        spacing_mm: (row, column) distances of its samples.
    """
    if spacing_mm is None or not whole.is_volume:
        return spacing_mm
    number = whole.numbers[0]
    axis = parse_slice_stem(data.stems[number])[1]
    return (volume_grid(data.image_path(number)).spacing_mm[axis_number(axis)], *spacing_mm)
