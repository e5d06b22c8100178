"""Which of several processes this is, and how many an outer launcher has started."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_RUN_VARIABLE = "SEGKIT_RUN"
_PARENT_VARIABLE = "SEGKIT_PARENT"
_LOOK_EVERY_S = 0.5


class OthersEnded(RuntimeError):
    """Another process of the run has ended, and this one cannot go on."""


def is_main_process() -> bool:
    """True in the process that writes and tells; launchers number the others in the environment."""
    numbers = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in numbers)


def process_number() -> int:
    """The number of this process as far as its launcher tells, for messages; 0 for a process on its own."""
    return next((int(os.environ[name]) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0)


def started_by_launcher() -> tuple[int, int] | None:
    """(processes on each machine, machines) that torchrun or srun has started; None where neither has.

    Raises:
        ValueError: machines cannot have equally many processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if in_srun():
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        total = int(os.environ["SLURM_STEP_NUM_TASKS"])
        if total % machines:
            # Rounded down, the sampler would share out the images among fewer processes than train.
            raise ValueError(
                f"srun has started {total} processes on {machines} machines: expected as many on each. "
                "Say `--ntasks-per-node` in place of `--ntasks`."
            )
        return total // machines, machines
    return None


def in_srun() -> bool:
    """Whether srun has started several processes of this command; a job script, or a single task, starts its own."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def free_run(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, ... where that is taken; processes started by this one use the same.

    Processes that were started by others cannot agree on a number: runs/NAME, which is refused if it is taken.
    """
    if not is_main_process() and _RUN_VARIABLE in os.environ:
        return Path(os.environ[_RUN_VARIABLE])
    if started_by_launcher() is not None or "NODE_RANK" in os.environ:
        return Path("runs", name)
    number = 1
    while (run := Path("runs", name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    os.environ[_RUN_VARIABLE] = str(run)
    return run


def be_parent() -> None:
    """Processes that this one starts from now on, and that call `end_with_parent`, end when it is gone."""
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


def end_with_parent() -> None:
    """See `be_parent`; a process that waits for others in a collective would not notice otherwise."""
    parent = os.getppid()
    if os.environ.get(_PARENT_VARIABLE) != str(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
