"""A Ray cluster: how a job gets there, and what each of its workers gets of it."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Of a Ray that is started for the job. What passes through are names and outcomes, not images.
_STORE_BYTES = 2**28


def check_address(address: str) -> None:
    """Refuse what cannot be reached from here, before anything is opened."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("jobs on a Ray cluster need the package ray: `pip install 'segkit[ray]'`.")
    if "://" in address:
        raise ValueError(
            f"address is {address!r}: expected auto, local or HOST:PORT. From outside of a cluster a job is submitted: "
            "`ray job submit --address http://HOST:8265 -- segkit predict ... --ray auto`."
        )


@contextmanager
def connected(address: str) -> Iterator[list[Mapping[str, float]]]:
    """`CPU` and `GPU` of each machine of the cluster."""
    # Of a Ray that is started here; a cluster is in the hands of those who run it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its log files keep all
            handler.setLevel(logging.ERROR)
    own = not ray.is_initialized()
    if own:
        here: dict[str, Any] = (
            {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == "local" else {}
        )
        with _signals_kept():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
            except Exception as error:  # Ray raises plain ones too, such as where it takes too long to start
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(
                    f"no Ray at {address!r} ({reason}). Run this on a machine of the cluster, through `ray "
                    "job submit`, or with `--ray local` on this machine alone."
                ) from None
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if own:
            ray.shutdown()


@dataclass(frozen=True)
class Share:
    """What each worker gets of a cluster."""

    workers: int
    device: str
    cpus: int
    gpus: float


def share_out(nodes: Sequence[Mapping[str, float]], workers: int | None, device: str) -> Share:
    """What each of so many workers gets.

    Args:
        nodes: `CPU` and `GPU` of each machine.

    Raises:
        ValueError: a device that cannot be had.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: expected 1 or more.")
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}: expected auto, cpu or cuda, as Ray chooses which GPU a worker gets.")
    if device == "cuda" and not gpus:
        raise ValueError("device is 'cuda': the Ray cluster has no GPU. Say `--device cpu`, or add machines with GPUs.")
    if gpus and device != "cpu":
        workers = workers or gpus
        return Share(workers, "cuda", 1, 1 / math.ceil(workers / gpus))
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    workers = workers or max(1, sum(map(bool, cpus)))
    fitting = (each for each in range(max(cpus, default=1), 1, -1) if sum(one // each for one in cpus) >= workers)
    # What is too much for the machines that are there may be for others that the cluster starts.
    return Share(workers, "cpu", next(fitting, 1), 0)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler for SIGTERM; ours stops a job in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
