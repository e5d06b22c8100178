"""Results for people and machines: a table, JSON, Markdown and a plot."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peers import Absent, peer_versions
from benchmarks.rows import Entry, Row
from benchmarks.timing import Settings
from segkit import __version__

_PLOT_COLUMNS = 3
# Between these lines of a page stand tables.
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_HEADINGS = ("", "median", "ratio", "quartiles", "goal", "")


@dataclass(frozen=True)
class Report:
    """Rows, and what they were measured on.

    Attributes:
        machine: processor, cores, threads, GPU, versions, date and command line.
        settings: device, rounds, small.
    """

    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]

    def write(self, path: Path) -> None:
        values = {"machine": self.machine, "settings": self.settings, "rows": [row.to_dict() for row in self.rows]}
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Report:
        """Raises ValueError for a file that `write` did not write."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Report([Row.from_dict(row) for row in values["rows"]], values["machine"], values["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a report of tools/benchmark.py ({error!r}).") from error


def make_report(command: str, rows: list[Row], settings: Settings) -> Report:
    """The rows with this machine, now."""
    written = {**asdict(settings), "device": str(settings.device)}
    line = (
        f"python tools/benchmark.py {command} --device {settings.device} --rounds {settings.rounds} "
        f"--threads {torch.get_num_threads()}{' --small' if settings.small else ''}"
    )
    machine = {**describe_machine(settings.device), "command": line}
    return Report(rows, machine, written)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {"segkit": __version__, "torch": torch.__version__, **peer_versions()},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """One line: device, cores, threads, torch, date."""
    device = machine["cpu"] if machine["gpu"] is None else f"{machine['gpu']} beside {machine['cpu']}"
    return (
        f"{device}, {machine['cores']} cores, {machine['torch_threads']} thread(s) of torch, "
        f"torch {machine['versions']['torch']}, {machine['date']}"
    )


def show(report: Report, console: Console) -> None:
    """Print all rows as tables."""
    console.print(machine_line(report.machine), soft_wrap=True)
    if report.settings["small"]:
        console.print("Tiny shapes: this shows that everything runs, the numbers mean nothing.", style="yellow")
    for row in report.rows:
        table = Table(*_HEADINGS, title=f"{row.title}  ({_related(row)})", title_justify="left", title_style="bold")
        for entry in row.entries:
            table.add_row(*_cells(row, entry, report.settings["small"]), style="bold" if entry.goal else None)
        console.print(table)


def to_markdown(reports: Sequence[Report]) -> str:
    """The same tables for `docs/benchmarks.md`: a heading per command, and under it what it was measured on."""
    lines = []
    for report in reports:
        command = None
        for row in report.rows:
            if row.command != command:
                command = row.command
                lines += [f"### `{command}`", "", f"{machine_line(report.machine)}; `{report.machine['command']}`", ""]
            lines += [f"**{row.title}** ({_related(row)})", ""]
            lines += [_markdown_line(_HEADINGS), "|---|" + "---:|" * (len(_HEADINGS) - 2) + "---|"]
            lines += [_markdown_line(_cells(row, entry, report.settings["small"])) for entry in row.entries] + [""]
    return "\n".join(lines)


def write_into(page: Path, reports: Sequence[Report]) -> None:
    """Put the tables between the two marks of a Markdown page, in place of what stands there.

    Raises:
        ValueError: no such page, a page without such marks, or a report whose numbers mean nothing.
    """
    for report in reports:
        if report.settings["small"]:
            raise ValueError(
                f"`{report.machine['command']}`: measured with --small, whose numbers mean nothing, so {page} stays as "
                "it is. Measure without --small."
            )
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{page}: cannot be read as text ({error}). Name the page with --into.") from error
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{page}: expected the lines {_BEGIN} and {_END}, between which the tables go.")
    page.write_text(f"{before}{begin}\n\n{to_markdown(reports)}\n{end}{after}", encoding="utf-8")


def plot(reports: Sequence[Report], path: Path) -> None:
    """A panel per row: bars are ratios, a red mark is segkit's goal.

    Raises:
        Absent: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise Absent("a plot needs matplotlib: pip install '.[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for report in reports for row in report.rows if any(e.figure is not None for e in row.entries)]
    columns = min(_PLOT_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(6 * columns, 2.4 * lines), squeeze=False)
    for panel in panels.flat[len(rows) :]:
        panel.remove()
    for row, panel in zip(rows, panels.flat, strict=False):
        entries = _measured(row)
        figures = [entry.figure for entry in entries]
        colours = ["tab:blue" if entry.goal else "lightgray" for entry in entries]
        bars = panel.barh([entry.name for entry in entries], figures, color=colours)
        panel.bar_label(bars, [f" {_number(figure)}" for figure in figures], fontsize=8)
        for place, entry in enumerate(entries):
            if entry.goal:
                panel.plot([entry.goal.limit] * 2, [place - 0.4, place + 0.4], color="tab:red", linewidth=2)
        panel.set_title(textwrap.fill(f"{row.title} ({_related(row)})", 44), fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.margins(x=0.12)
        panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def _measured(row: Row) -> list[Entry]:
    return [entry for entry in row.entries if entry.figure is not None]


def _related(row: Row) -> str:
    if row.baseline is not None:
        return f"{row.baseline} = 1.00"
    return f"in units of {row.unit_name}" if row.unit_name else row.quantity


def _cells(row: Row, entry: Entry, small: bool) -> tuple[str, ...]:
    if entry.value is None:
        return entry.name, "", "", "", str(entry.goal or ""), entry.absent or ""
    figure = "" if entry.figure is None else _number(entry.figure)
    spread = "" if entry.spread is None else f"{_number(entry.spread[0])} to {_number(entry.spread[1])}"
    verdict = {True: "met", False: "missed", None: "" if entry.goal is None else "baseline not measured"}[entry.met]
    if small and entry.met is not None:
        verdict = "not judged"  # goals are about real shapes
    return entry.name, f"{_number(entry.value)} {row.quantity}", figure, spread, str(entry.goal or ""), verdict


def _number(value: float) -> str:
    """Three digits, more where a ratio would hide behind them."""
    if value == 0 or 0.1 <= abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2g}"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
