"""Curves as a picture: panels below each other over one x axis, without a plotting library.

Pillow draws text from the outlines of a font that it brings along; lines are drawn at twice the size and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe & Ito (2008): told apart by everyone, also in gray.
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
_INK, _AXIS, _GRID, _PAPER = (45, 45, 45), (150, 150, 150), (228, 228, 228), (255, 255, 255)
_FINE = 2  # pixels drawn for one that is kept, along each side
_WIDTH, _PANEL, _HEAD, _FOOT, _LEFT, _RIGHT = 960, 190, 40, 50, 84, 28
_TEXT, _TITLE = 15, 18
_DOTS = 40  # curves of no more points show each of them
_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: in the legend.
        x, y: of equal length; a y that is no finite number breaks the line. On a log axis numbers have to be positive.
        color: place in `COLORS`, for one thing in several panels; None takes that of its place in the panel.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int | None = None


@dataclass(frozen=True)
class Panel:
    """Curves over one y axis.

    Attributes:
        label: what y is, with its unit.
        curves: at most as many as there are `COLORS`.
        log_y: decades at equal distances.
        mark: (x, y, text) of one point that is ringed; the text stands in the legend.
    """

    label: str
    curves: Sequence[Curve]
    log_y: bool = False
    mark: tuple[float, float, str] | None = None

    def colored(self) -> list[tuple[Curve, tuple[int, int, int]]]:
        """Each curve with its colour."""
        return [(c, COLORS[place if c.color is None else c.color]) for place, c in enumerate(self.curves)]


def draw_curves(panels: Sequence[Panel], x_label: str, *, log_x: bool = False, title: str = "") -> np.ndarray:
    """(H, W, 3) uint8 RGB picture, 960 pixels wide.

    Args:
        panels: from top to bottom.
        x_label: what x is, with its unit.
        log_x: decades at equal distances.
        title: above all panels.
    """
    from PIL import Image, ImageDraw

    top = 44 if title else 10
    height = top + len(panels) * (_HEAD + _PANEL) + _FOOT
    picture = Image.new("RGB", (_WIDTH * _FINE, height * _FINE), _PAPER)
    pen = ImageDraw.Draw(picture)
    if title:
        _write(pen, (_LEFT, top / 2 + 2), title, "lm", _TITLE)
    values = [x for panel in panels for curve in panel.curves for x in curve.x]
    x_axis = Axis(values, _LEFT, _WIDTH - _RIGHT, log=log_x, tight=True)
    for number, panel in enumerate(panels):
        head = top + number * (_HEAD + _PANEL)
        _draw_panel(pen, panel, x_axis, head, last=number == len(panels) - 1)
    _write(pen, ((_LEFT + _WIDTH - _RIGHT) / 2, height - 16), x_label, "mm")
    return np.asarray(picture.resize((_WIDTH, height), Image.Resampling.BOX))


def write_text(picture: np.ndarray, text: str, size: int = _TEXT) -> np.ndarray:
    """A copy of an (H, W, 3) RGB picture with a line of dark text at its left edge, halfway down."""
    from PIL import Image, ImageDraw, ImageFont

    drawn = Image.fromarray(picture)
    font: Any = ImageFont.load_default(size)
    ImageDraw.Draw(drawn).text((2, picture.shape[0] / 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(drawn)


class Axis:
    """From values to pixels, and which values are named.

    Args:
        values: all that have to find room; what is not finite, or not positive on a log axis, is passed over.
        start, end: pixels of the lowest and of the highest value.
        log: decades at equal distances.
        tight: ends at the values; else at the next named ones.

    Attributes:
        ticks: values that are named, ascending.
    """

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool = False, tight: bool = False
    ) -> None:
        shown = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(shown), max(shown)
        whole = all(float(v).is_integer() for v in shown)
        most = max(3, round(abs(end - start) / (70 if tight else 40)))
        self.log, self.start, self.end = log, start, end
        if low == high:
            room = 1.0 if whole else abs(low) * 0.1 or 1.0
            low, high = (low / 2, high * 2) if log else (low - room, high + room)
        ticks = _log_ticks(low, high, most) if log else []
        if len(ticks) < 2:
            step = _step((high - low) / most)
            step = max(1.0, step) if whole and tight else step
            first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
            ticks = [n * step for n in range(first, last + 1) if n * step > 0 or not log]
            if not tight and not log:
                low, high = ticks[0], ticks[-1]
        slack = 1e-9 * (high - low)
        self.low, self.high = low, high
        self.ticks = [tick for tick in ticks if low - slack <= tick <= high + slack]

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def tick_text(value: float) -> str:
    """A number as an axis names it: `0.001`, `2e-5`, `40000`."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1 else f"{value:.10g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in _STEPS if n * power >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 of each decade, or as many powers of ten as there is room for."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [n * 10.0**d for d in decades for n in (1, 2, 5) if low <= n * 10.0**d <= high]
    if len(fine) <= most:
        return fine
    return [10.0**d for d in decades if d % math.ceil(len(decades) / most) == 0 and low <= 10.0**d <= high]


def _draw_panel(pen: Any, panel: Panel, x_axis: Axis, head: float, last: bool) -> None:
    top, bottom = head + _HEAD, head + _HEAD + _PANEL - 14
    values = [y for curve in panel.curves for y in curve.y]
    y_axis = Axis(values, bottom, top, log=panel.log_y)
    for tick in y_axis.ticks:
        _line(pen, [(_LEFT, y_axis(tick)), (_WIDTH - _RIGHT, y_axis(tick))], _GRID, 1)
        _write(pen, (_LEFT - 10, y_axis(tick)), tick_text(tick), "rm")
    for tick in x_axis.ticks:
        _line(pen, [(x_axis(tick), top), (x_axis(tick), bottom)], _GRID, 1)
        if last:
            _write(pen, (x_axis(tick), bottom + 14), tick_text(tick), "mm")
    _line(pen, [(_LEFT, bottom), (_WIDTH - _RIGHT, bottom)], _AXIS, 1)
    for curve, color in panel.colored():
        for part in _unbroken(curve, x_axis.log, panel.log_y):
            points = [(x_axis(x), y_axis(y)) for x, y in part]
            _line(pen, points, color, 2)
            if len(points) == 1 or len(curve.x) <= _DOTS:
                for x, y in points:
                    _circle(pen, x, y, 3, fill=color)
    _write(pen, (_LEFT, head + _HEAD / 2 + 4), panel.label, "lm")
    _draw_legend(pen, panel, head + _HEAD / 2 + 4)
    if panel.mark is not None:
        x, y, _ = panel.mark
        _circle(pen, x_axis(x), y_axis(y), 6, outline=_INK)


def _draw_legend(pen: Any, panel: Panel, y: float) -> None:
    """From the right end to the left, in the order of the curves, the mark last."""
    x = float(_WIDTH - _RIGHT)
    entries: list[tuple[str, Callable[[float], None]]] = [
        (curve.name, lambda x, color=color: _line(pen, [(x, y), (x + 22, y)], color, 3))  # type: ignore[misc]
        for curve, color in panel.colored()
    ]
    if panel.mark is not None:
        entries.append((panel.mark[2], lambda x: _circle(pen, x + 15, y, 6, outline=_INK)))
    for name, sample in reversed(entries):
        width = pen.textlength(name, font=_font(_TEXT)) / _FINE
        _write(pen, (x, y), name, "rm")
        sample(x - width - 30)
        x -= width + 52


def _unbroken(curve: Curve, log_x: bool, log_y: bool) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y):
            part.append((x, y))
        elif part:
            yield part
            part = []
    if part:
        yield part


def _line(pen: Any, points: Sequence[tuple[float, float]], color: tuple[int, int, int], width: int) -> None:
    pen.line([(x * _FINE, y * _FINE) for x, y in points], fill=color, width=width * _FINE, joint="curve")


def _circle(pen: Any, x: float, y: float, radius: float, **colors: Any) -> None:
    box = [(v + d * radius) * _FINE for d in (-1, 1) for v in (x, y)]
    pen.ellipse(box, width=2 * _FINE, **colors)


def _write(pen: Any, place: tuple[float, float], text: str, anchor: str, size: int = _TEXT) -> None:
    pen.text((place[0] * _FINE, place[1] * _FINE), text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * _FINE)
