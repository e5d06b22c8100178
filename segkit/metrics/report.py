"""Scores as a person reads them: a table and one line, in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segkit.metrics.scores import Scores

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = (
    ("pooled", "iou", "IoU"),
    ("pooled", "dice", "Dice"),
    ("pooled", "precision", "precision"),
    ("pooled", "recall", "recall"),
    ("per_image", "iou", "IoU"),
    ("per_image", "dice", "Dice"),
)
_AVERAGES = {"pooled": "pooled", "per_image": "per image"}


def score_table(scores: Scores) -> Table:
    """Scores of each class and their means, in percent; `-` is a class without a score."""
    # Imported here: a training script that prints nothing needs no rich.
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"scores in percent, {_images(scores)}", caption=_note(scores))
    table.add_column("class")
    for average, _, title in _COLUMNS:
        table.add_column(f"{title}\n{_AVERAGES[average]}", justify="right")
    columns = [getattr(scores, average)(name) for average, name, _ in _COLUMNS]
    for name in scores.format.names:
        table.add_row(escape(name), *(_percent(column.per_class[name]) for column in columns))
    table.add_section()
    table.add_row("mean", *(_percent(column.mean) for column in columns), style="bold")
    return table


def summary_line(scores: Scores) -> str:
    """One line: mean IoU and Dice under both averages, in percent, with what they are a mean of."""
    parts = [
        f"{_AVERAGES[average]} {title} {_percent(getattr(scores, average)(name).mean)} %"
        for average, name, title in _COLUMNS
        if name in ("iou", "dice")
    ]
    total, absent = scores.format.num_classes, scores.absent
    classes = f"{total - len(absent)} of {total} classes" if absent else f"{total} class{'es' if total > 1 else ''}"
    without = f" (absent: {', '.join(absent)})" if absent else ""
    return f"{', '.join(parts)}; {_images(scores)}, {classes}{without}"


def _note(scores: Scores) -> str | None:
    if not scores.absent:
        return None
    from rich.markup import escape

    return f"- : in neither truth nor prediction, left out of means: {escape(', '.join(scores.absent))}"


def _images(scores: Scores) -> str:
    return f"{scores.images} image{'' if scores.images == 1 else 's'}"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100.0 * score:.2f}"
