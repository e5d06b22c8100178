"""Names of values and classes: what a person or a layout says, since masks cannot show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segkit.formats.classes import parse_color
from segkit.formats.codec import Codec
from segkit.formats.mask_format import BACKGROUND
from segkit.inspection.stored import Key

# In `--classes`, in place of a name: this value means "do not look here".
IGNORE = ("ignore", "ignored")

HELP = (
    "`0=sky,1=road,11=ignore`: the name of each value (or '#rrggbb' colour); `ignore` is not trained on. "
    "Or names alone, in the order of the values: `sky,road,ignore`."
)


@dataclass(frozen=True)
class Naming:
    """What values on disk are called.

    Attributes:
        names: value -> name of its class; `background` is what is left of a binary mask.
        ignored: values that mean "do not look here".
        given: whether somebody said so; otherwise names are empty.
    """

    names: Mapping[Key, str] = field(default_factory=dict)
    ignored: tuple[Key, ...] = ()
    given: bool = False


def parse_classes(text: str) -> dict[Key, str] | list[str]:
    """Value -> name, or names in order, from the text of `--classes`.

    Raises:
        ValueError: both ways mixed, a value or name that is given twice, or nothing.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    pairs = [entry.rpartition("=") for entry in entries]
    valued = [bool(sign) for _, sign, _ in pairs]
    if not entries or (any(valued) and not all(valued)):
        raise ValueError(f"--classes is {text!r}: expected {HELP}")
    if not any(valued):
        twice = sorted({name for name in entries if entries.count(name) > 1} - set(IGNORE))
        if twice:
            raise ValueError(f"--classes names {twice} more than once: give each class a name of its own.")
        return entries
    named: dict[Key, str] = {}
    for value, _, name in pairs:
        key = _key(value.strip())
        if not name.strip() or key in named:
            raise ValueError(f"--classes is {text!r}: the value {value!r} has no name or two. Expected {HELP}")
        named[key] = name.strip()
    return named


def name_values(given: Mapping[Key, str] | list[str], found: Iterable[Key]) -> Naming:
    """What `--classes` says of the values that were found.

    Raises:
        ValueError: names in an order that does not fit the number of values.
    """
    values = sorted(found, key=lambda key: (isinstance(key, str), key))
    if isinstance(given, Mapping):
        named = dict(given)
    elif all(isinstance(v, int) and v < len(given) for v in values):
        named = dict(enumerate(given))
    elif len(given) == len(values):
        named = dict(zip(values, given, strict=True))
    elif len(given) == 1 and len(values) == 2 and values[0] in (0, "#000000"):
        named = {values[1]: given[0]}
    else:
        shown = ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
        raise ValueError(
            f"--classes gives {len(given)} names, and the masks hold {len(values)} values: {shown}. "
            f"Say which is which: `{values[0]}=NAME,...`."
        )
    ignored = tuple(value for value, name in named.items() if name in IGNORE)
    return Naming({v: n for v, n in named.items() if n not in IGNORE}, ignored, True)


def names_of_codec(codec: Codec) -> Naming:
    """What the codec of a layout says of the values on disk."""
    spec = codec.to_spec()
    ignored = tuple(_disk_key(value) for value in spec.get("ignored_values", ()))
    values = spec.get("values")
    if values is None:  # colours by default
        colors = {c.name: [c.color] for c in codec.format.classes if c.color is not None}
        values = {BACKGROUND: [(0, 0, 0)], **colors} if len(colors) < 2 else colors
    names = {}
    for key, value in values.items():
        if isinstance(value, list):  # of colours: name -> colours
            names.update({_disk_key(color): str(key) for color in value})
        else:
            names[_disk_key(key)] = str(value)
    return Naming(names, ignored, True)


def _disk_key(value: Any) -> Key:
    return int(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*parse_color(value))


def _key(text: str) -> Key:
    if text.isdecimal():
        return int(text)
    if text.startswith("#"):
        return "#{:02x}{:02x}{:02x}".format(*parse_color(text))
    raise ValueError(f"--classes: {text!r} is no value: expected a whole number or a colour '#rrggbb'. {HELP}")
