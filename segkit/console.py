"""What commands show while they work, and when they are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segkit.processes import is_main_process, process_number


def show_scores(
    scores: Any, json: Path | None = None, split: str | None = None, like: Iterable[str] | None = None
) -> None:
    """A table of scores on stdout, what the toolkits in `like` would print, and JSON where that is wanted."""
    from rich.console import Console

    from segkit.experiment import write_json
    from segkit.metrics.peers import score_like
    from segkit.metrics.report import score_table

    if not is_main_process():
        return
    theirs = {peer: score_like(peer, scores.counts) for peer in like or ()}
    Console().print(score_table(scores))
    for peer, score in theirs.items():
        print(f"like {peer}: {'no value' if score.value is None else f'{score.value:.6f}'}  {score.name}")
    if json is not None:
        said = {"like": {peer: score.to_dict() for peer, score in theirs.items()}} if theirs else {}
        write_json(json, {**scores.to_dict(), "split": split, **said})


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something is counted; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_folds(scores: Any, run: Path, json: Path | None = None) -> None:
    """Out-of-fold scores, how far folds are apart, and where all of it is written."""
    import json as text

    from segkit.formats.files import write_whole

    show_scores(scores)
    if not is_main_process():
        return
    written = (run / "scores.json").read_bytes()
    for part, spread in text.loads(written)["spread"].items():
        for name in ("pooled_iou", "pooled_dice"):
            if spread[name]["deviation"] is not None:
                print(f"{part} {name} by fold: {spread[name]['mean']:.4f} ± {spread[name]['deviation']:.4f}")
    print(f"scores: {run / 'scores.json'}")
    if json is not None:
        write_whole(json, written)


def complain(message: str) -> None:
    """Lines on stderr, each with who says it."""
    name = "segkit" if is_main_process() else f"segkit, process {process_number()}"
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr)
