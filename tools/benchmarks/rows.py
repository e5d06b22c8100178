"""What was measured: rows of entries, each related to a baseline and held against a goal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Goal:
    """What the figure of an entry should be: at most `limit`, or at least."""

    limit: float
    at_least: bool = False

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass
class Entry:
    """One contender in a row.

    Attributes:
        samples: one number per round, in the row's quantity; round i of all contenders ran side by side.
        value: median of the samples.
        figure: what the goal is about: the value over the baseline's value, or over the row's unit.
        spread: quartiles of the figure, taken round by round.
        goal: None for contenders that are shown for comparison only.
        absent: why there is no value.
    """

    name: str
    samples: list[float] = field(default_factory=list)
    value: float | None = None
    figure: float | None = None
    spread: tuple[float, float] | None = None
    goal: Goal | None = None
    absent: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or without a figure."""
        return None if self.goal is None or self.figure is None else self.goal.met(self.figure)


@dataclass
class Row:
    """Contenders that do the same work.

    Attributes:
        command: the command of `tools/benchmark.py` that measured it.
        title: the work, with its shape.
        quantity: what samples are: ms, MiB, images/s, ...
        baseline: name of the entry that is 1.00, or None where values are related to `unit`.
        unit: what values are divided by without a baseline, in the row's quantity; `unit_name` says what it is.
    """

    command: str
    title: str
    quantity: str
    entries: list[Entry]
    baseline: str | None = None
    unit: float = 1.0
    unit_name: str = ""

    def relate(self) -> Row:
        """Fill in values, figures and spreads from the samples.

        There is no figure where the baseline was not measured, or took nothing that can be divided by.
        """
        for entry in self.entries:
            entry.value = median(entry.samples) if entry.samples else None
        base = next((e.samples for e in self.entries if e.name == self.baseline), [])
        if self.baseline is not None and not (base and min(base) > 0):
            return self
        for entry in self.entries:
            if entry.value is not None:
                beside = base or [self.unit] * len(entry.samples)
                entry.figure = entry.value / median(beside)
                entry.spread = _quartiles([mine / other for mine, other in zip(entry.samples, beside, strict=True)])
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        values = asdict(self)
        for entry, written in zip(self.entries, values["entries"], strict=True):
            written["met"] = entry.met
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Row:
        """The row that `to_dict` wrote."""
        entries = []
        for written in values["entries"]:
            rest = {key: value for key, value in written.items() if key != "met"}
            rest["goal"] = None if rest["goal"] is None else Goal(**rest["goal"])
            rest["spread"] = None if rest["spread"] is None else tuple(rest["spread"])
            entries.append(Entry(**rest))
        return Row(**{**values, "entries": entries})


def _quartiles(numbers: list[float]) -> tuple[float, float]:
    if len(numbers) < 2:
        return numbers[0], numbers[0]
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return low, high
