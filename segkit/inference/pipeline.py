"""Reading, computing and writing at the same time: threads on both sides of the device, with bounded queues between."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

# Batches that wait on each side of the device. Two, so that a slow file does not stop it at once.
AHEAD = 2
_MOST_THREADS = 16


def run_pipeline(
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Value],
    answer: Callable[[list[Value]], list[Answer]],
    write: Callable[[Item, Answer], Result],
    *,
    stopped: Callable[[], bool] = lambda: False,
    threads: int | None = None,
) -> Iterator[list[Result]]:
    """The results of each batch, in the order of the batches, as soon as all of it is written.

    Items are read and answers are written by threads; batches are answered in this thread, one after the other. While
    one is answered, at most `AHEAD` others are read and `AHEAD` are written: memory does not grow with a slow disk.

    Args:
        read: one item.
        answer: as many answers as there are items in the batch, in their order.
        write: one answer.
        stopped: asked after each batch; once it is True no other is begun, and those that were are finished.
        threads: on either side; default one per core, at most 16.

    Raises:
        Exception: the first that `read`, `answer` or `write` raises, after the batches before it.
    """
    threads = threads or min(_MOST_THREADS, available_cores())
    source = iter(batches)
    reading: deque[tuple[Sequence[Item], list[Future[Value]]]] = deque()
    writing: deque[list[Future[Result]]] = deque()
    readers, writers = ThreadPoolExecutor(threads, "read"), ThreadPoolExecutor(threads, "write")

    def read_ahead() -> None:
        while len(reading) < AHEAD and (batch := next(source, None)) is not None:
            reading.append((batch, [readers.submit(read, item) for item in batch]))

    try:
        read_ahead()
        while reading and not stopped():
            batch, futures = reading.popleft()
            values = [future.result() for future in futures]
            read_ahead()
            del futures  # they hold the images
            answers = answer(values)
            writing.append([writers.submit(write, *pair) for pair in zip(batch, answers, strict=True)])
            del values, answers
            while writing and (len(writing) > AHEAD or all(future.done() for future in writing[0])):
                yield [future.result() for future in writing.popleft()]
        while writing:
            yield [future.result() for future in writing.popleft()]
    finally:
        # What has begun ends by itself: a thread cannot be stopped.
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
