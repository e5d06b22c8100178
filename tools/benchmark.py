"""Measure segkit beside its peers: `tools/benchmark.py COMMAND`, or `all`; `docs/benchmarks.md` says how and why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.counts import counts, decode_counts, overlapping_counts
from benchmarks.data import loader, overlap_geometry
from benchmarks.gradients import gradients
from benchmarks.imports import imports
from benchmarks.inspection import inspection
from benchmarks.losses import losses, losses_memory, overlapping_loss, upsampled_loss
from benchmarks.peers import Absent
from benchmarks.pipeline import pipeline
from benchmarks.predicting import predicting
from benchmarks.report import Report, make_report, plot, show, to_markdown, write_into
from benchmarks.rows import Row
from benchmarks.steps import step
from benchmarks.surface import surface
from benchmarks.timing import Settings
from benchmarks.windows import sliding_window

Measure = Callable[[Settings], list[Row]]

COMMANDS: dict[str, Measure] = {
    "losses": losses,
    "losses-memory": losses_memory,
    "overlapping-loss": overlapping_loss,
    "upsampled-loss": upsampled_loss,
    "gradients": gradients,
    "counts": counts,
    "decode-counts": decode_counts,
    "overlapping-counts": overlapping_counts,
    "surface": surface,
    "loader": loader,
    "overlap-geometry": overlap_geometry,
    "step": step,
    "pipeline": pipeline,
    "sliding-window": sliding_window,
    "predict": predicting,
    "imports": imports,
    "inspect": inspection,
}
# A gradient is right or wrong; how fast something is depends on the machine.
_MUST_MEET = {"gradients"}

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
Rounds = Annotated[int, typer.Option(min=1, help="Samples of each contender; they take turns.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; fewer than cores where others use some of them.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.", metavar="FILE")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the ratios (needs matplotlib).", metavar="FILE")]
Small = Annotated[bool, typer.Option("--small", help="Tiny shapes, to see that everything runs.")]

app = typer.Typer(
    help="Measure segkit beside its peers. Example: python tools/benchmark.py losses --json losses.json",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run a command; a user's mistake is one line and exit status 2."""
    for name, measure in COMMANDS.items():
        app.command(name, help=measure.__doc__)(_command(name))
    app.command("all", help="All of the above, in this order.")(_command("all"))
    try:
        app()
    except (ValueError, Absent) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="What --json wrote.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
    into: Annotated[Path | None, typer.Option(help="Renew the tables of this page: docs/benchmarks.md.")] = None,
    plot_file: Plot = None,
) -> None:
    """Show what was measured before."""
    reports = [Report.read(path) for path in files]
    if into is not None:
        write_into(into, reports)
    elif markdown:
        print(to_markdown(reports), end="")
    else:
        for each in reports:
            show(each, Console())
    if plot_file is not None:
        plot(reports, plot_file)


def run(name: str, settings: Settings, console: Console | None = None) -> Report:
    """What the command of this name measures; `all` is every command in order. Rows are shown as they are done."""
    rows: list[Row] = []
    for measure in COMMANDS.values() if name == "all" else [COMMANDS[name]]:
        found = make_report(name, measure(settings), settings)
        rows += found.rows
        if console is not None:
            show(found, console)
    return make_report(name, rows, settings)


def _command(name: str) -> Callable[..., Any]:
    def command(
        device: Device = "auto",
        rounds: Rounds = 9,
        threads: Threads = None,
        json_file: Json = None,
        plot_file: Plot = None,
        small: Small = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        found = run(name, Settings(_pick_device(device), rounds, small), Console())
        if json_file is not None:
            found.write(json_file)
        if plot_file is not None:
            plot([found], plot_file)
        if any(entry.met is False for row in found.rows if row.command in _MUST_MEET for entry in row.entries):
            raise typer.Exit(1)

    return command


def _pick_device(word: str) -> torch.device:
    if word not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {word!r}: expected cpu, cuda or auto.")
    there = torch.cuda.is_available()
    if word == "cuda" and not there:
        raise ValueError("--device cuda: torch finds no CUDA GPU here. Take cpu, or a torch build for your driver.")
    return torch.device("cuda" if word != "cpu" and there else "cpu")


if __name__ == "__main__":
    main()
