"""What commands show while they work, and when they are done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
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
def progress(title: str, unit: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something is counted, with the time left; nothing where stderr is no terminal.

    Args:
        unit: what is counted, for work that may take days: then the rate is shown too, and a log gets a line now and
            then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    rate, spoken = Rate(), Spoken(title, unit or "")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            rate.update(done)
            text = title if unit is None or rate.per_s is None else f"{title}, {rate.per_s:.3g} {unit}/s"
            bar.update(task, completed=done, total=total, description=text)
            if unit is not None and not console.is_terminal and is_main_process():
                spoken.update(done, total, rate)

        yield update


class Rate:
    """How many per second since the first call, whatever was done before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._begun: tuple[int, float] | None = None
        self.per_s: float | None = None

    def update(self, done: int) -> None:
        if self._begun is None:
            self._begun = done, self.clock()
        elif done > self._begun[0]:
            self.per_s = (done - self._begun[0]) / max(1e-9, self.clock() - self._begun[1])


class Spoken:
    """Lines for a log: the first after some seconds, then fewer and fewer, at least one in ten minutes."""

    _FIRST_S, _LAST_S = 10.0, 600.0

    def __init__(self, title: str, unit: str, tell: Callable[[str], None] | None = None) -> None:
        self._title, self._unit, self._tell = title, unit, tell or complain
        self._pause_s = self._FIRST_S
        self._next_s: float | None = None

    def update(self, done: int, total: int, rate: Rate) -> None:
        now = rate.clock()
        if self._next_s is None:
            self._next_s = now + self._pause_s
        if now < self._next_s or rate.per_s is None:
            return
        self._pause_s = min(2 * self._pause_s, self._LAST_S)
        self._next_s = now + self._pause_s
        left = timedelta(seconds=round((total - done) / rate.per_s))
        self._tell(f"{self._title}: {done} of {total} {self._unit}, {rate.per_s:.3g}/s, {left} left.")


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
