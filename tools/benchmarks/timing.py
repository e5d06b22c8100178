"""Time contenders side by side: rounds A B C A B C ..., so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.peers import Absent
from benchmarks.rows import Entry, Goal, Row

# Rounds before the first that counts. The third on a GPU runs what the first two compiled and tuned.
_WARM_UP = {"cpu": 1, "cuda": 3}
# A sample shorter than this repeats its work, or the clock and the call would be a part of it.
_SHORTEST_S = 0.02
_MOST_REPEATS = 1000

Run = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: samples of each contender.
        small: tiny shapes, to see that everything runs; the numbers mean nothing.
    """

    device: torch.device
    rounds: int = 9
    small: bool = False


@dataclass(frozen=True)
class Contender:
    """One way of doing the work of a row.

    Attributes:
        prepare: gives the call that is timed; it may raise `Absent`. What the call returns is freed after the clock
            has stopped.
        goal: what segkit should reach.
        result: tensors to compare, from what the call returned; all contenders that have it must agree, or they do
            not do the same work. None for a contender that does less.
    """

    name: str
    prepare: Callable[[], Run]
    goal: Goal | None = None
    result: Callable[[Any], list[Tensor]] | None = None


def time_row(
    command: str,
    title: str,
    baseline: str,
    contenders: Sequence[Contender],
    settings: Settings,
    *,
    images: int | None = None,
    tolerance: float = 1e-3,
) -> Row:
    """Measure contenders in turns.

    Args:
        images: what one call handles; samples are then images/s, otherwise milliseconds per call.
        tolerance: largest difference of two results, as a share of the largest number in them.

    Raises:
        RuntimeError: two contenders computed different things.
    """
    entries = [Entry(c.name, goal=c.goal) for c in contenders]
    runs = _prepare(contenders, entries)
    check_same_work(title, _warm_up(contenders, runs, settings), tolerance)
    repeats = {name: _repeats(run, settings.device) for name, run in runs.items()}
    for _ in rounds_of(title, settings):
        for entry in entries:
            if entry.name in runs:
                seconds = _sample(runs[entry.name], repeats[entry.name], settings.device)
                entry.samples.append(seconds * 1000.0 if images is None else images / seconds)
    quantity = "ms" if images is None else "images/s"
    return Row(command, title, quantity, entries, baseline).relate()


def rounds_of(title: str, settings: Settings) -> Any:
    """Numbers of the rounds, with a bar on stderr; rubbish is collected between rounds and not inside of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        console = Console(stderr=True)
        for number in track(range(settings.rounds), title, console=console, transient=True):
            gc.collect()
            yield number
    finally:
        if enabled:
            gc.enable()


def check_same_work(title: str, results: dict[str, list[Tensor]], tolerance: float) -> None:
    """Refuse to compare contenders whose results differ.

    Raises:
        RuntimeError: names the two and by how much they differ.
    """
    names = list(results)
    for name in names[1:]:
        for mine, first in zip(results[name], results[names[0]], strict=True):
            mine, first = mine.double(), first.double()
            largest = max(float(first.abs().max()), torch.finfo(torch.float64).tiny)
            error = float((mine - first).abs().max()) / largest if mine.shape == first.shape else math.inf
            if not error <= tolerance:  # NaN is no agreement either
                raise RuntimeError(
                    f"{title}: {name} and {names[0]} differ by {error:.1e} of the largest number (at most "
                    f"{tolerance:.0e} is rounding): they do not do the same work, so their times cannot be compared."
                )


def _prepare(contenders: Sequence[Contender], entries: Sequence[Entry]) -> dict[str, Run]:
    runs = {}
    for contender, entry in zip(contenders, entries, strict=True):
        try:
            runs[contender.name] = contender.prepare()
        except Absent as reason:
            entry.absent = str(reason)
    return runs


def _warm_up(contenders: Sequence[Contender], runs: dict[str, Run], settings: Settings) -> dict[str, list[Tensor]]:
    """Run all until caches, allocators and compilers have settled; the results of the last time."""
    results = {}
    for _ in range(_WARM_UP[settings.device.type]):
        for contender in contenders:
            if contender.name in runs:
                returned = runs[contender.name]()
                if contender.result is not None:
                    results[contender.name] = contender.result(returned)
                del returned
    return results


def _repeats(run: Run, device: torch.device) -> int:
    seconds = _sample(run, 1, device)
    return min(_MOST_REPEATS, max(1, math.ceil(_SHORTEST_S / max(seconds, 1e-9))))


def _sample(run: Run, repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `repeats` calls in a row."""
    if device.type == "cuda":
        return _cuda_sample(run, repeats)
    started_s = time.perf_counter()
    for _ in range(repeats):
        returned = run()
    seconds = (time.perf_counter() - started_s) / repeats
    del returned  # freed after the clock has stopped: whoever trains goes on with it
    return seconds


def _cuda_sample(run: Run, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        returned = run()
    end.record()
    torch.cuda.synchronize()
    del returned
    return start.elapsed_time(end) / 1000.0 / repeats
