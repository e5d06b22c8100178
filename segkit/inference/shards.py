"""Parts of a job for several processes: which batches each computes, and how they wait for each other."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from segkit.processes import in_srun

_LOOK_EVERY_S = 0.2
_ENDED, _FINISHED = "segkit/ended/{}", "segkit/finished"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a job, each a run of whole batches.

    Attributes:
        number: from 1.
        together: all parts were started by one torchrun, which ends them all as soon as one exits with an error. So
            they wait for each other and exit alike.
    """

    number: int = 1
    count: int = 1
    together: bool = False

    @staticmethod
    def parse(text: str) -> Shard:
        """`2/8`, the second of eight."""
        number, sign, count = text.partition("/")
        if not (sign and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(
                f"shard is {text!r}: expected I/N with I from 1 to N, such as 1/8 for the first of eight parts. "
                "(A SLURM array that counts so: `--array=1-8`.)"
            )
        return Shard(int(number), int(count))

    def batches(self, count: int) -> range:
        """Numbers of the batches of this part, of `count` in all: neighbours, so that a volume is decoded by few."""
        return range(count * (self.number - 1) // self.count, count * self.number // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard()


def launched_shard() -> Shard:
    """The part of this process among those that torchrun or srun has started; the whole job where neither has."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Shard(int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]), together=True)
    if in_srun():
        return Shard(int(os.environ["SLURM_PROCID"]) + 1, int(os.environ["SLURM_STEP_NUM_TASKS"]))
    return WHOLE


def own_device(device: str) -> str:
    """`auto` or `cuda` for one of several processes of a machine: a GPU of its own."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID") if in_srun() else None)
    if device not in ("auto", "cuda") or local is None or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


class Others:
    """The processes of one torchrun, which meet at the store that it holds for them."""

    def __init__(self, shard: Shard) -> None:
        from torch.distributed.rendezvous import rendezvous

        self._shard = shard
        self._store: Any = next(iter(rendezvous("env://")))[0]

    def wait_for_ends(self) -> None:
        """Until every process has done its part. Looks again and again, so that signals are heard meanwhile."""
        self._store.set(_ENDED.format(self._shard.number), "1")
        if self._shard.number == 1:
            self._wait([_ENDED.format(number) for number in range(1, self._shard.count + 1)])
        else:
            self._wait([_FINISHED])

    def say_finished(self) -> None:
        """What the first process says once the outputs of all are joined."""
        self._store.set(_FINISHED, "1")

    def _wait(self, keys: list[str]) -> None:
        while not self._store.check(keys):
            time.sleep(_LOOK_EVERY_S)
