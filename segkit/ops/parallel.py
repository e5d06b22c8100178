"""Work on many tiles at once, by threads that each compute alone.

Left to itself, torch splits every operation among its threads and waits for the last of them. A tile takes dozens of
short operations: where other processes hold a core, as the workers of a data loader do, each would wait for a whole
time slice of the scheduler, and a loss of 0.1 s took 6 s (two cores of an AMD EPYC, two busy processes beside it,
2026-11). Threads that never wait for each other lose only the time that the others take.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """`work(item)` of each item, in their order: on a CPU with as many threads as torch has, else one by one.

    Only few results wait to be taken. All work is done in inference mode: threads know nothing of the caller's.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for item in items:
            yield _alone(work, item)
        return
    pool = _pool(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_alone, work, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _alone(work: Callable[[Any], Any], item: Any) -> Any:
    with torch.inference_mode():
        return work(item)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch computes alone."""
    barrier = threading.Barrier(threads)
    pool = ThreadPoolExecutor(threads, "segkit-tiles", initializer=_compute_alone)
    for started in [pool.submit(barrier.wait) for _ in range(threads)]:
        started.result()
    # It counts for the thread that says it, but also for those that will start later: they get what was before.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    # A fork has the pool, but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread takes over the number of all when it first asks, so it has to ask before
    torch.set_num_threads(1)
