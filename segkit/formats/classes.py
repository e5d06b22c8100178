"""The classes of a mask: names and colours."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RGB = tuple[int, int, int]

# Okabe & Ito (2008), eight colours that colour-blind readers can tell apart, without black:
# black is kept for background and for pixels without a class.
_OKABE_ITO: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_GOLDEN_RATIO = 0.618033988749895


@dataclass(frozen=True)
class MaskClass:
    """One class: the name people read and the colour pictures show.

    Args:
        name: unique among the classes of a format; numbers are taken as their decimal text.
        color: red, green, blue in 0..255, or "#rrggbb"; None picks one from the default palette.
    """

    name: str
    color: RGB | None = None

    def __post_init__(self) -> None:
        if isinstance(self.name, bool) or not isinstance(self.name, (str, int)) or not str(self.name):
            raise ValueError(f"class name {self.name!r}: expected a word or a number, such as `road` or 7.")
        object.__setattr__(self, "name", str(self.name))
        if self.color is not None:
            object.__setattr__(self, "color", parse_color(self.color))


def parse_classes(classes: Iterable[str | int | MaskClass | Mapping]) -> tuple[MaskClass, ...]:
    """Classes from names, numbers, `MaskClass` or `{name: ..., color: ...}`; every class gets a colour.

    Raises:
        ValueError: no class, a bare string in place of a list, or a name given twice.
    """
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise ValueError(f"classes is {classes!r}: expected a list of names, such as [sky, road].")
    given = [_parse_class(c) for c in classes]
    if not given:
        raise ValueError("classes is empty: name at least one class.")
    repeated = sorted(name for name, times in Counter(c.name for c in given).items() if times > 1)
    if repeated:
        raise ValueError(f"classes {repeated} are named more than once: give every class a name of its own.")
    return tuple(c if c.color is not None else MaskClass(c.name, default_color(i, c.name)) for i, c in enumerate(given))


def classes_to_list(classes: Iterable[MaskClass]) -> list[dict[str, Any]]:
    """JSON-ready description; `parse_classes` reads it back."""
    return [{"name": name, "color": list(color)} for name, color in class_colors(classes).items()]


def class_colors(classes: Iterable[MaskClass]) -> dict[str, RGB]:
    """Name -> colour of each class."""
    return {c.name: c.color or (0, 0, 0) for c in classes}


def default_color(index: int, name: str = "") -> RGB:
    """Colour of class number `index`; `background` is black. Neighbouring indices look different."""
    if name == "background":
        return (0, 0, 0)
    if index < len(_OKABE_ITO):
        return _OKABE_ITO[index]
    # Hues a golden ratio apart never repeat closely; value and saturation change with each round of 16.
    hue = (index * _GOLDEN_RATIO) % 1.0
    value = (0.95, 0.75, 0.55)[(index // 16) % 3]
    saturation = (0.65, 0.9)[(index // 48) % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_color(color: str | Iterable[int]) -> RGB:
    """(red, green, blue) in 0..255 from three numbers or "#rrggbb"."""
    if isinstance(color, str):
        digits = color.removeprefix("#")
        if len(digits) == 6 and all(d in "0123456789abcdefABCDEF" for d in digits):
            return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    elif isinstance(color, Iterable):
        parts = tuple(color)
        if len(parts) == 3 and all(isinstance(p, int) and 0 <= p <= 255 for p in parts):
            return parts
    raise ValueError(f"color {color!r}: expected three numbers from 0 to 255, or a string such as '#e69f00'.")


def _parse_class(value: Any) -> MaskClass:
    if isinstance(value, MaskClass):
        return value
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"name", "color"})
        if unknown or "name" not in value:
            raise ValueError(f"class {dict(value)}: expected the keys `name` and, if you like, `color`.")
        return MaskClass(value["name"], value.get("color"))
    return MaskClass(value)
