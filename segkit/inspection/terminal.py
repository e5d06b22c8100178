"""The report of `segkit inspect` on a terminal: the verdict first, then what it stands on, then what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from segkit.inspection.meaning import percent
from segkit.inspection.report import Report

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_FAULTS_SHOWN = 20
_CLASSES_SHOWN = 40
_PAIRS_SHOWN = 8
_SIZES_SHOWN = 4
_BAR = 24
_STEMS_SHOWN = 5


def show_report(report: Report, console: Console) -> None:
    """Print a report; what comes from files is never read as markup, and no line of text is broken within a path."""
    from rich.text import Text

    for part in _parts(report):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield _verdict(report)
    yield _data_lines(report)
    if report["values"]:
        yield _class_table(report)
    yield from _overlap_lines(report["overlap"])
    yield from _note_lines(report)
    yield from _fault_lines(report)


def _verdict(report: Report) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    advice = report["advice"]
    if advice["format"] is None:
        head = Text("no advice", style="bold yellow")
    else:
        words = (advice["format"], advice["activation"], report["coding"]["codec"])
        head = Text(" · ".join(words), style="bold green")
    body = Text("\n").join([head, Text(" ".join(advice["reasons"]))])
    return Panel(body, title="sigmoid or softmax?", title_align="left", border_style="green", padding=(0, 1))


def _data_lines(report: Report) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    parts = ", ".join(f"{count} {name}" for name, count in report["parts"].items())
    table.add_row(
        "images", Text(f"{report['images']} ({parts})" if len(report["parts"]) > 1 else f"{report['images']}")
    )
    if report["bands"] is not None:
        table.add_row(
            "pixels", Text(f"{report['bands']} band{'s' if report['bands'] > 1 else ''} of {report['dtype']}")
        )
    shown = [f"{s['height']}x{s['width']} ({s['count']})" for s in report["sizes"][:_SIZES_SHOWN]]
    rest = len(report["sizes"]) - len(shown)
    table.add_row("sizes", Text(", ".join(shown) + (f", {rest} more" if rest else "") + "  height x width"))
    coding = report["coding"]
    table.add_row("masks", Text(f"{report['masks']}, {coding['text']}"))
    if coding["layout"]:
        table.add_row("layout", Text(coding["layout"]))
    advice = report["advice"]
    if advice["format"] is not None:
        crop = "whole images" if advice["crop"] is None else f"crops of {advice['crop']}"
        table.add_row("train on", Text(f"batches of {advice['batch_size']} {crop}, augmented as {advice['augment']}"))
    if report["images_per_second"]:
        table.add_row("read in", Text(f"{report['seconds']:.1f} s, {report['images_per_second']:.0f} images/s"))
    return table


def _class_table(report: Report) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    values, advice = report["values"], report["advice"]
    weights = dict(zip(advice["classes"], advice["class_weights"], strict=True))
    weighted = any(weight != 1 for weight in advice["class_weights"])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in (
        ("value", "right"),
        ("class", "left"),
        ("pixels", "right"),
        ("", "left"),
        ("images", "right"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    if weighted:
        table.add_column("weight", justify="right")
    largest = max((entry["pixel_share"] or 0 for entry in values.values()), default=0) or 1
    listed = list(values.items())
    if len(listed) > _CLASSES_SHOWN:
        listed.sort(key=lambda item: -(item[1]["pixel_share"] or 0))
    for value, entry in listed[:_CLASSES_SHOWN]:
        share, name = entry["pixel_share"] or 0, entry["name"]
        row = [
            Text(value),
            Text("" if name in (None, value) else name, style="dim" if name == "ignored" else ""),
            Text(percent(share)),
            Text(_bar(share / largest), style="dim" if name == "ignored" else "cyan"),
            Text(str(entry["images"])),
        ]
        if weighted:
            weight = weights.get(name or value)
            row.append(Text("" if weight is None else f"{weight:.2f}"))
        table.add_row(*row)
    if len(values) > _CLASSES_SHOWN:
        table.add_row("", f"... {len(values) - _CLASSES_SHOWN} more")
    return table


def _bar(share: float) -> str:
    """A bar in eighths of a letter; what is there at all is seen."""
    eighths = max(1, round(share * _BAR * 8)) if share > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _overlap_lines(overlap: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    if not overlap["pairs"]:
        return
    shares = [percent(overlap[key]) for key in ("share_0", "share_1", "share_2_or_more")]
    yield Text("overlap  ", style="bold").append(
        f"{shares[0]} of pixels have no label, {shares[1]} one, {shares[2]} two or more", style="not bold"
    )
    for entry in overlap["containment"][:_PAIRS_SHOWN]:
        yield Text(f"  {entry['inner']} inside {entry['outer']}: {percent(entry['share'])} of its pixels")
    contained = {frozenset((entry["inner"], entry["outer"])) for entry in overlap["containment"]}
    others = [pair for pair in overlap["pairs"] if frozenset((pair["a"], pair["b"])) not in contained]
    for pair in others[:_PAIRS_SHOWN]:
        yield Text(
            f"  {pair['a']} and {pair['b']}: IoU {percent(pair['iou'])}, {percent(pair['share_of_a'])} of {pair['a']}, "
            f"{percent(pair['share_of_b'])} of {pair['b']}"
        )
    if len(others) > _PAIRS_SHOWN:
        yield Text(f"  ... {len(others) - _PAIRS_SHOWN} more pairs", style="dim")


def _note_lines(report: Report) -> Iterator[RenderableType]:
    from rich.text import Text

    never = report["overlap"]["never_together"]
    notes = list(report["notes"])
    if never:
        shown = "; ".join(" and ".join(pair) for pair in never[:_STEMS_SHOWN])
        more = f"; {len(never) - _STEMS_SHOWN} more pairs" if len(never) > _STEMS_SHOWN else ""
        notes.append(f"Never in one image: {shown}{more}.")
    for note in notes:
        yield Text("note  ", style="bold yellow").append(note, style="not bold default")


def _fault_lines(report: Report) -> Iterator[RenderableType]:
    from rich.text import Text

    faults = report["faults"]
    if not faults:
        yield Text("no faults found", style="green")
        return
    yield Text(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", style="bold red")
    for entry in faults[:_FAULTS_SHOWN]:
        yield Text(f"  {entry['file']}: {entry['fault']}")
    if len(faults) > _FAULTS_SHOWN:
        yield Text(f"  ... {len(faults) - _FAULTS_SHOWN} more; --json FILE lists all", style="dim")
