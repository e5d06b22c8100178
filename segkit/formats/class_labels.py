"""Which class a label stands for, in annotation files that name what they mark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segkit.formats.class_regions import ClassRegions
from segkit.formats.mask_format import BACKGROUND, MaskFormat

OTHERS = ("error", "background", "ignore")
# In place of the number of a class: "do not look here", and "nothing says what it stands for". Not 255, the ignored
# value of planes of 8 bits: one of 300 overlapping classes may have that number.
IGNORED, UNDECLARED = -1, -2


class ClassLabels:
    """Two-way table between the labels of an annotation file and the classes of a format.

    Several labels may name one class: the first is the one written. The same holds for ignored labels. A label may
    also be given by its number where a file numbers them; a number is looked up as a name first.

    Args:
        regions: which classes are labelled.
        values: label -> class name; None or `background` is the absence of a class. By default each class is
            labelled by its own name.
        ignored_values: labels that mean "do not look here".
        others: what a label stands for that is not named: `error`, `background` (the absence of a class),
            `ignore` ("do not look here"), or the name of a class, such as the only one of a binary format.
    """

    def __init__(
        self,
        regions: ClassRegions,
        values: Mapping[Any, str | None] | None = None,
        ignored_values: Iterable[Any] = (),
        others: str = "error",
    ) -> None:
        self._format = format = regions.format
        self._index_of = {name: index for index, name in enumerate(format.names)}
        self._given = values is not None
        self.values = _named(values, format)
        given = [ignored_values] if isinstance(ignored_values, (str, int)) else ignored_values
        self.ignored_values = tuple(dict.fromkeys(_label(value) for value in given))
        twice = sorted(set(self.values) & set(self.ignored_values))
        if twice:
            raise ValueError(
                f"labels {twice} stand for a class and are in `ignored_values` too: leave them out of one."
            )
        self.others = str(others)
        if self.others not in (*OTHERS, *format.names):
            raise ValueError(
                f"`others` is {others!r}: expected {', '.join(OTHERS)} or a class of {list(format.names)}."
            )
        labels = {name: label for label, name in reversed(self.values.items())}
        self._written = [labels.get(name, name) for name in format.names]
        lost = [format.names[index] for index in regions.classes if not self._is_read_back(index)]
        if lost:
            raise ValueError(f"`values` gives no label for {lost}: add one line `LABEL: NAME` for each.")

    def target(self, label: str, number: int | str | None = None) -> int | None:
        """Number of the class that a label stands for, `IGNORED`, or None for the absence of a class.

        Raises:
            KeyError: nothing says what it stands for.
        """
        for name in (label,) if number is None else (label, str(number)):
            if name in self.values:
                return self._index(self.values[name])
            if name in self.ignored_values:
                return IGNORED
        if self.others == "error":
            raise KeyError(label)
        return IGNORED if self.others == "ignore" else self._index(self.others)

    def written(self, index: int) -> str:
        """The label, or its number as text, that is written for class number `index`, or for `IGNORED`."""
        if index == IGNORED:
            return self.ignored_values[0]
        return self._written[index]

    def strange_text(self, strange: Iterable[str]) -> str:
        """Says that nothing declares these labels, and what to do."""
        names = sorted(set(strange))
        shown = ", ".join(map(repr, names[:10])) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
        declared = [*self.values, *self.ignored_values]
        more = f", ... ({len(declared)} in all)" if len(declared) > 40 else ""
        return (
            f"found labels {shown}, which no class declares (declared: {', '.join(declared[:40])}{more}). Add them to "
            "`values` or to `ignored_values`, or say what all others stand for with `others: background`, `ignore` or "
            "the name of a class."
        )

    def to_spec(self) -> dict[str, Any]:
        """The options for `open_codec`."""
        spec: dict[str, Any] = {"values": dict(self.values)} if self._given else {}
        if self.ignored_values:
            spec["ignored_values"] = list(self.ignored_values)
        return spec if self.others == "error" else {**spec, "others": self.others}

    def _is_read_back(self, index: int) -> bool:
        try:
            return self.target(self.written(index)) == index
        except KeyError:
            return False

    def _index(self, name: str) -> int | None:
        return self._index_of.get(name)


def _named(values: Mapping[Any, str | None] | None, format: MaskFormat) -> dict[str, str]:
    if values is None:
        return {name: name for name in format.names}
    if not isinstance(values, Mapping):
        raise ValueError(f"`values` is {values!r}: expected lines `LABEL: NAME`, such as {{cat: animal}}.")
    named: dict[str, str] = {}
    for label, name in values.items():
        name = BACKGROUND if name is None else str(name)
        if name not in (BACKGROUND, *format.names):
            raise ValueError(f"`values` maps {label!r} to {name!r}, which is no class (classes: {list(format.names)}).")
        named[_label(label)] = name
    return named


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value) == "":
        raise ValueError(f"label {value!r}: expected a word or a number.")
    return str(value)
