"""How much of the time a GPU computes, as its driver tells while a training runs."""

from __future__ import annotations

from statistics import fmean
from threading import Event, Thread

import torch

from benchmarks.peers import Absent

_INTERVAL_S = 0.1


class GpuUse:
    """Asks the driver again and again, between `start` and `stop`.

    The driver's answer is about its last period, a sixth of a second to a second: watch for several seconds.

    Raises:
        Absent: not a CUDA device, or there is nobody to ask.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise Absent("there is none: measured with --device cuda alone")
        self.device = device
        self._shares: list[float] = []
        self._stopped = Event()
        self._thread: Thread | None = None
        try:
            self._ask()
        except Exception as error:  # pynvml has errors of its own, and may not be there to name them
            raise Absent(f"the driver does not tell ({error}); pip install nvidia-ml-py") from error

    def start(self) -> None:
        self._shares = []
        self._stopped.clear()
        self._thread = Thread(target=self._ask_on, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Mean share of the time since `start` in which a kernel ran, in [0, 1]."""
        assert self._thread is not None
        self._stopped.set()
        self._thread.join()
        return fmean(self._shares)

    def _ask_on(self) -> None:
        self._ask()
        while not self._stopped.wait(_INTERVAL_S):
            self._ask()

    def _ask(self) -> None:
        self._shares.append(torch.cuda.utilization(self.device) / 100.0)
