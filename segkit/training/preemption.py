"""Being asked to stop: SIGTERM, as schedulers send it, ends a run with a code that says *again*."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later.
AGAIN = 75


class Preempted(SystemExit):
    """SIGTERM came. Not caught, it ends the process with exit code `AGAIN`."""

    def __init__(self) -> None:
        super().__init__(AGAIN)


@contextmanager
def preemptible() -> Iterator[None]:
    """SIGTERM raises `Preempted` at once, where nothing has to be saved. Signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    raise Preempted


class Stop:
    """Which signal has asked to stop; None as long as none has."""

    asked: int | None = None


@contextmanager
def stoppable() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, where work has to be brought to an end first; a second SIGINT stops at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        stop.asked = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
