"""Regions of single classes, which may overlap on disk, and the planes that they make together.

Polygons, run lengths and class files all mark one class at a time. For classes that may overlap they are the planes.
Where classes exclude each other, a rule says what holds at a pixel that two classes claim, and at one that none does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from segkit.formats.mask_format import BACKGROUND, MaskFormat

OVERLAP = ("error", "ignore", "last", "smallest")
UNMARKED = ("error", "ignore")
# What a sample without annotations, or without the file of a class, may say.
MISSING = ("error", "ignore", "empty")


class ClassRegions:
    """How regions of classes become planes, and planes regions.

    A class named `background` that excludes the others has no regions: it is where no other class is marked.

    Args:
        format: of the planes.
        overlap: for exclusive classes: a pixel that two of them claim is an error, belongs to neither (`ignore`), to
            the one that is named last on disk (`last`), or to the smaller region (`smallest`).
        unmarked: for exclusive classes without `background`: what a pixel says that no region marks.
    """

    def __init__(self, format: MaskFormat, overlap: str = "error", unmarked: str = "error") -> None:
        self.format = format
        self.overlap = one_of(overlap, OVERLAP, "overlap")
        self.unmarked = one_of(unmarked, UNMARKED, "unmarked")
        self.classes = [i for i, n in enumerate(format.names) if format.classes_overlap or n != BACKGROUND]
        if not self.classes:
            raise ValueError("`background` is the only class, and no region marks it. Name another class.")

    @property
    def names(self) -> list[str]:
        """Of the classes that have regions."""
        return [self.format.names[index] for index in self.classes]

    @property
    def order_counts(self) -> bool:
        """Whether regions must be added in the order of `sorted_regions`, and else in any."""
        return not self.format.classes_overlap and self.overlap in ("last", "smallest")

    @property
    def unmarked_is_ignored(self) -> bool:
        """Whether an ignored pixel is written by leaving it unmarked."""
        return not self.format.classes_overlap and self.unmarked == "ignore" and BACKGROUND not in self.format.names

    def sorted_regions(self, areas: Sequence[int]) -> list[int]:
        """Numbers of regions in the order in which they are to be added, given their areas in the order on disk."""
        if self.overlap == "smallest":
            return sorted(range(len(areas)), key=lambda number: -areas[number])
        return list(range(len(areas)))

    def canvas(self, size_hw: tuple[int, int]) -> Canvas:
        """Planes to which regions are added."""
        make = _OverlappingCanvas if self.format.classes_overlap else _ExclusiveCanvas
        return make(self, size_hw)

    def split(self, planes: np.ndarray, where: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(class number, region, where the class is not known) for each class with regions, both (H, W) bool.

        Raises:
            ValueError: values that are no class of the format.
        """
        format = self.format
        known = 2 if format.classes_overlap else format.num_classes
        strange = np.unique(planes[(planes >= known) & (planes != format.ignore_index)]).tolist()
        if strange:
            raise ValueError(f"{where}: plane values {strange} are no class of the format.")
        for index in self.classes:
            plane, value = (planes[..., index], 1) if format.classes_overlap else (planes[..., 0], index)
            yield index, plane == value, plane == format.ignore_index

    def to_spec(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        options = {"overlap": self.overlap, "unmarked": self.unmarked}
        return {name: value for name, value in options.items() if value != "error"}


class Canvas(ABC):
    """Planes of one sample, to which regions of classes, (H, W) bool, are added one after the other."""

    @abstractmethod
    def mark(self, index: int, region: np.ndarray, where: str) -> None:
        """Class number `index` is here; `where` names the region in errors."""

    @abstractmethod
    def doubt(self, index: int, region: np.ndarray) -> None:
        """Nobody knows whether class number `index` is here, unless it is marked."""

    @abstractmethod
    def ignore(self, region: np.ndarray) -> None:
        """Nothing is known here, whatever is marked; where order counts, what is added later holds."""

    @abstractmethod
    def planes(self, where: str) -> np.ndarray:
        """(H, W, P) planes of all that was added."""


class _OverlappingCanvas(Canvas):
    def __init__(self, regions: ClassRegions, size_hw: tuple[int, int]) -> None:
        self._format = regions.format
        # Pixel by pixel, as planes lie: of a hundred classes an image shows three, and the rest is never touched.
        self._planes = np.zeros((*size_hw, self._format.num_planes), self._format.dtype)
        self._doubted: dict[int, np.ndarray] = {}
        self._ignored: np.ndarray | None = None

    def mark(self, index: int, region: np.ndarray, where: str) -> None:
        self._planes[region, index] = 1

    def doubt(self, index: int, region: np.ndarray) -> None:
        self._doubted[index] = region | self._doubted.get(index, False)

    def ignore(self, region: np.ndarray) -> None:
        self._ignored = region if self._ignored is None else self._ignored | region

    def planes(self, where: str) -> np.ndarray:
        for index, region in self._doubted.items():
            self._planes[region & (self._planes[..., index] == 0), index] = self._format.ignore_index
        if self._ignored is not None:
            self._planes[self._ignored] = self._format.ignore_index
        return self._planes


class _ExclusiveCanvas(Canvas):
    def __init__(self, regions: ClassRegions, size_hw: tuple[int, int]) -> None:
        self._regions, self._format = regions, regions.format
        self._plane = np.full(size_hw, self._format.ignore_index, self._format.dtype)
        self._marked = np.zeros(size_hw, bool)
        self._claimed_twice = np.zeros(size_hw, bool)
        self._unknown = np.zeros(size_hw, bool)
        self._ignored = np.zeros(size_hw, bool)
        self._marked_by: dict[int, str] = {}
        self._rivals: tuple[str, str, tuple[int, int]] | None = None

    def mark(self, index: int, region: np.ndarray, where: str) -> None:
        if not self._regions.order_counts:
            if index not in self._regions.classes:
                return  # background is where nothing else is, and hides nothing unless order counts
            clash = region & self._marked & (self._plane != index)
            if self._rivals is None and clash.any():
                row, column = np.argwhere(clash)[0].tolist()
                self._rivals = (self._marked_by[int(self._plane[row, column])], where, (row, column))
            self._claimed_twice |= clash
        self._plane[region] = index
        self._marked |= region
        self._marked_by.setdefault(index, where)

    def doubt(self, index: int, region: np.ndarray) -> None:
        self._unknown |= region

    def ignore(self, region: np.ndarray) -> None:
        if self._regions.order_counts:
            self._plane[region] = self._format.ignore_index
            self._marked |= region
        else:
            self._ignored |= region

    def planes(self, where: str) -> np.ndarray:
        self._settle_claims(where)
        rest = ~(self._marked | self._unknown | self._ignored)
        if BACKGROUND in self._format.names:
            self._plane[rest] = self._format.names.index(BACKGROUND)
        elif self._regions.unmarked == "error" and rest.any():
            raise ValueError(
                f"{where}: {np.count_nonzero(rest)} pixels are marked for no class. Add a class `background` for "
                "them, or `unmarked: ignore` to leave them out of training."
            )
        self._plane[self._ignored] = self._format.ignore_index
        return self._plane[..., None]

    def _settle_claims(self, where: str) -> None:
        claimed_twice = self._claimed_twice & ~self._ignored
        if self._regions.overlap == "ignore":
            self._plane[claimed_twice] = self._format.ignore_index
        elif claimed_twice.any():
            assert self._rivals is not None
            first, second, (row, column) = self._rivals
            raise ValueError(
                f"{where}: {np.count_nonzero(claimed_twice)} pixels are marked for two classes (such as row {row}, "
                f"column {column}: {first} and {second}), but the classes exclude each other. Say which one counts "
                "with `overlap: last`, `smallest` or `ignore`, or use format `multilabel` if they may overlap."
            )


def one_of(value: Any, known: Sequence[str], option: str) -> str:
    """`value` if it is one of the words that `option` knows."""
    if value not in known:
        raise ValueError(f"`{option}` is {value!r}: expected {', '.join(known)}.")
    return value
