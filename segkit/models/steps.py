"""Steps of post-processing: what they are called, what they do to planes, and how a bundle or a config writes them.

A step is `{name: largest_component, classes: [disc]}`. Without `classes` it is for all classes but one named
`background`. Steps work on whole images, planes (H, W, P), or on whole volumes, (D, H, W, P), where regions hang
together across slices; corners that touch connect. `segkit.inference.postprocess` applies them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.ops.components import find_holes, label_components
from segkit.suggest import closest

Steps = tuple["Step", ...]
# Share by which spacings, which NIfTI has in float32, may make a region smaller than it is.
_ROUNDING = 1e-6


def open_steps(specs: Iterable[Any], format: MaskFormat) -> Steps:
    """The steps that a list describes, in its order.

    Args:
        specs: a name, or `{name: ..., options}`, each.

    Raises:
        ValueError: an unknown step, option or class, or a step that does not fit the format.
    """
    if isinstance(specs, (str, Mapping)) or not isinstance(specs, Iterable):
        raise ValueError(f"postprocess is {specs!r}: expected a list of steps, such as [{{name: fill_holes}}].")
    return tuple(_open_step(spec, format) for spec in specs)


def steps_to_list(steps: Steps) -> list[dict[str, Any]]:
    """JSON-ready description, which `open_steps` reads."""
    return [step.to_dict() for step in steps]


@dataclass(frozen=True)
class Step(ABC):
    """One step of post-processing."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, planes: np.ndarray, format: MaskFormat, spacing_mm: Sequence[float] | None = None) -> None:
        """Change planes in place.

        Args:
            planes: (H, W, P), or (D, H, W, P) of a volume.
            spacing_mm: distances along the axes but the last, where known.
        """

    @abstractmethod
    def check(self, format: MaskFormat) -> None:
        """Refuse what masks of `format` cannot hold.

        Raises:
            ValueError: names the class or the way out.
        """

    def to_dict(self) -> dict[str, Any]:
        """`name`, and the options that differ from their defaults."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}

    def describe(self) -> str:
        """One short line: `minimum_size nucleus, 32 pixels`."""
        values = {key: value for key, value in self.to_dict().items() if key != "name"}
        words = [" ".join(v) if isinstance(v, list) else f"{k} {v}" for k, v in values.items()]
        return f"{self.name} {', '.join(words)}".rstrip()


@dataclass(frozen=True)
class _PerClass(Step):
    """A step that is done to each of some classes.

    Attributes:
        classes: their names; empty means all but one named `background`.
    """

    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        given = self.classes
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ValueError(f"{self.name}: classes are {given!r}, expected a list of names.")
        object.__setattr__(self, "classes", tuple(str(name) for name in given))

    def check(self, format: MaskFormat) -> None:
        for name in self.classes:
            _check_class(self.name, name, format)

    def apply(self, planes: np.ndarray, format: MaskFormat, spacing_mm: Sequence[float] | None = None) -> None:
        for name in self.classes or [name for name in format.names if name != BACKGROUND]:
            self.apply_to(planes, format.names.index(name), format, spacing_mm)

    @abstractmethod
    def apply_to(self, planes: np.ndarray, number: int, format: MaskFormat, spacing_mm: Sequence[float] | None) -> None:
        """The same for class `number` alone."""


@dataclass(frozen=True)
class LargestComponent(_PerClass):
    """Of each class, only its largest region stays; of equals the first."""

    name: ClassVar[str] = "largest_component"

    def apply_to(self, planes: np.ndarray, number: int, format: MaskFormat, spacing_mm: Sequence[float] | None) -> None:
        labels, sizes = label_components(format.holds(planes, number))
        if len(sizes) > 2:
            largest = np.append(False, sizes[1:] == sizes[1:].max())
            # Labels are not always in the order of rows.
            first = labels.flat[int(largest[labels].argmax())]
            format.remove(planes, number, (labels > 0) & (labels != first))


@dataclass(frozen=True)
class MinimumSize(_PerClass):
    """Regions that are smaller are removed.

    Attributes:
        pixels: fewest pixels, or voxels of a volume; or
        mm2: smallest area in square millimetres, of images that tell their spacing; or
        mm3: smallest content in cubic millimetres, of volumes.
    """

    name: ClassVar[str] = "minimum_size"
    pixels: int | None = None
    mm2: float | None = None
    mm3: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [value for value in (self.pixels, self.mm2, self.mm3) if value is not None]
        if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], (int, float)):
            raise ValueError(f"{self.name}: expected one of pixels, mm2 and mm3, as a number.")
        if not (math.isfinite(given[0]) and given[0] > 0):
            raise ValueError(f"{self.name}: the size is {given[0]}, expected a number above 0.")

    def apply_to(self, planes: np.ndarray, number: int, format: MaskFormat, spacing_mm: Sequence[float] | None) -> None:
        least = self._least(planes.ndim - 1, spacing_mm)
        labels, sizes = label_components(format.holds(planes, number))
        small = sizes < least
        small[0] = False
        if small.any():
            format.remove(planes, number, small[labels])

    def _least(self, dimensions: int, spacing_mm: Sequence[float] | None) -> float:
        if self.pixels is not None:
            return self.pixels
        size, power = (self.mm2, 2) if self.mm2 is not None else (self.mm3, 3)
        assert size is not None
        if dimensions != power:
            kind = "an image" if dimensions == 2 else "a volume"
            raise ValueError(f"{self.name}: mm{power} of {kind}. Give mm{dimensions} or pixels instead.")
        if spacing_mm is None:
            raise ValueError(f"{self.name}: mm{power}, but the image tells no spacing. Give pixels instead.")
        return size / math.prod(spacing_mm) * (1 - _ROUNDING)


@dataclass(frozen=True)
class FillHoles(_PerClass):
    """What a class encloses becomes that class: background, or whatever it is in a format without background.

    A hole that is open at the border of the image is none.
    """

    name: ClassVar[str] = "fill_holes"

    def apply_to(self, planes: np.ndarray, number: int, format: MaskFormat, spacing_mm: Sequence[float] | None) -> None:
        held = format.holds(planes, number)
        if held.any():
            format.put(planes, number, find_holes(held) & format.vacant(planes, number))


@dataclass(frozen=True)
class Within(Step):
    """One class lies within another, such as the cup of an eye within its disc.

    Attributes:
        inner, outer: names of the classes.
        keep: `outer`: inner is cut to it; or `inner`: outer grows by it.
    """

    name: ClassVar[str] = "within"
    inner: str = ""
    outer: str = ""
    keep: str = "outer"

    def __post_init__(self) -> None:
        if not self.inner or not self.outer or self.inner == self.outer:
            raise ValueError(f"within: inner {self.inner!r}, outer {self.outer!r}: name two classes.")
        if self.keep not in ("inner", "outer"):
            raise ValueError(f"within: keep is {self.keep!r}, expected outer or inner.")

    def check(self, format: MaskFormat) -> None:
        for name in (self.inner, self.outer):
            _check_class(self.name, name, format)
        if not format.classes_overlap:
            raise ValueError(
                f"within: {self.inner!r} cannot lie within {self.outer!r}, as these classes exclude each other. Use "
                "format `multilabel`, whose values or files say that both hold."
            )

    def apply(self, planes: np.ndarray, format: MaskFormat, spacing_mm: Sequence[float] | None = None) -> None:
        inner, outer = format.names.index(self.inner), format.names.index(self.outer)
        outside = format.holds(planes, inner) & format.vacant(planes, outer)
        if self.keep == "outer":
            format.remove(planes, inner, outside)
        else:
            format.put(planes, outer, outside)


STEPS: dict[str, type[Step]] = {step.name: step for step in (LargestComponent, MinimumSize, FillHoles, Within)}


def _open_step(spec: Any, format: MaskFormat) -> Step:
    values = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(values, Mapping) or "name" not in values:
        raise ValueError(f"postprocess: {spec!r} is no step, expected {{name: NAME, ...}}.")
    name, options = values["name"], {str(key): value for key, value in values.items() if key != "name"}
    if not isinstance(name, str) or name not in STEPS:
        raise ValueError(f"postprocess: unknown step {name!r}. {closest(str(name), STEPS)}")
    known = [f.name for f in fields(STEPS[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"postprocess: {name} has no option {option!r}. {closest(option, known)}")
    step = STEPS[name](**options)
    step.check(format)
    return step


def _check_class(step: str, name: str, format: MaskFormat) -> None:
    if name not in format.names:
        raise ValueError(f"{step}: no class {name!r}. {closest(name, format.names)}")
