"""Between planes and marked regions, as annotation files hold them: one region for each object, or for each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from segkit.formats.class_labels import IGNORED, ClassLabels
from segkit.formats.class_regions import MISSING, ClassRegions, one_of
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.run_lengths import Region, area, draw, mask_region


@dataclass(frozen=True)
class Mark:
    """A region and what it says.

    Attributes:
        target: number of a class, or `IGNORED` where nothing is known.
        region: where.
        certain: False where nobody knows whether the class is here.
    """

    target: int
    region: Region
    certain: bool = True

    @property
    def _meaning(self) -> tuple[int, bool]:
        return self.target, self.certain


class MarkCodec(Codec):
    """Files that mark regions by label; see the codecs that derive from it.

    Args:
        values, ignored_values, others: which class a label stands for, see `ClassLabels`.
        missing: what a sample without marks says: `error`, nothing (`ignore`), or that no class is there (`empty`).
        overlap, unmarked: for exclusive classes, see `ClassRegions`.
    """

    marks_classes = True

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[Any, str | None] | None = None,
        ignored_values: Iterable[Any] = (),
        others: str = "error",
        missing: str = "error",
        overlap: str = "error",
        unmarked: str = "error",
    ) -> None:
        super().__init__(format)
        self.regions = ClassRegions(format, overlap, unmarked)
        self.labels = ClassLabels(self.regions, values, ignored_values, others)
        self.missing = one_of(missing, MISSING, "missing")

    def to_spec(self) -> dict[str, Any]:
        spec = {"name": self.name, **self.labels.to_spec()}
        if self.missing != "error":
            spec["missing"] = self.missing
        return {**spec, **self.regions.to_spec()}


def paint(regions: ClassRegions, size_hw: tuple[int, int], marks: Sequence[Mark], where: str) -> np.ndarray:
    """(H, W, P) planes of marks in the order in which they lie on disk.

    Raises:
        ValueError: `where`: marks that the format cannot hold together, see `ClassRegions`.
    """
    format, canvas = regions.format, regions.canvas(size_hw)
    if regions.order_counts:
        ordered = [marks[number] for number in regions.sorted_regions([area(mark.region) for mark in marks])]
    else:
        ordered = sorted(marks, key=lambda mark: mark._meaning)
    # Joined as run lengths, so that a class of a thousand objects is drawn once.
    for (target, certain), group in groupby(ordered, key=lambda mark: mark._meaning):
        drawn = draw([mark.region for mark in group])
        if target == IGNORED:
            canvas.ignore(drawn)
        elif certain:
            canvas.mark(target, drawn, format.names[target])
        else:
            canvas.doubt(target, drawn)
    return canvas.planes(where)


def paint_nothing(regions: ClassRegions, size_hw: tuple[int, int], missing: str, where: str) -> np.ndarray:
    """(H, W, P) planes of a sample without any mark, which `missing` explains: error, ignore or empty."""
    if missing == "error":
        raise ValueError(
            f"{where}: has no annotation. Say what that means: `missing: empty` (no class is there) or "
            "`missing: ignore` (nothing is known)."
        )
    if missing == "ignore":
        return np.full((*size_hw, regions.format.num_planes), regions.format.ignore_index, regions.format.dtype)
    return paint(regions, size_hw, [], where)


def split_marks(
    regions: ClassRegions, labels: ClassLabels, planes: np.ndarray, where: str, doubts: bool, way_out: str
) -> Iterator[Mark]:
    """The marks of (H, W, P) planes that `paint` turns into them again: one for each class that is there.

    Args:
        doubts: whether the file may hold marks that are not certain.
        way_out: where it may not: what to do about pixels that are ignored for some of the classes only.

    Raises:
        ValueError: `where`: ignored pixels that nothing in the file can say, or values of no class.
    """
    format = regions.format
    unknown = planes == format.ignore_index
    ignored = unknown.all(2)
    partly = bool((unknown.any(2) & ~ignored).any())
    by_label = bool(labels.ignored_values) and bool(ignored.any())
    by_class = format.classes_overlap and doubts and (partly or not labels.ignored_values)
    if ignored.any() and not (by_label or by_class or regions.unmarked_is_ignored):
        raise ValueError(
            f"{where}: some pixels are ignored, and no label on disk means that. Add one to `ignored_values`, such as "
            "[void]."
        )
    if partly and not by_class:
        raise ValueError(
            f"{where}: some pixels are ignored for some of the classes only, and no label on disk means that. "
            f"{way_out}, or ignore them for all classes."
        )
    for index, held, doubted in regions.split(planes, where):
        if held.any():
            yield Mark(index, mask_region(held))
        if by_class:
            doubted = doubted & ~ignored if by_label else doubted
            if doubted.any():
                yield Mark(index, mask_region(doubted), certain=False)
    if by_label:
        yield Mark(IGNORED, mask_region(ignored))
