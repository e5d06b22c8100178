"""Processes of one run that end together, each with its own message and none waiting for another that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from segkit.processes import OthersEnded, be_parent, end_with_parent
from segkit.training.preemption import AGAIN, Preempted

# What a process may take to notice that another is gone, write its message and end.
_GRACE_S = 15.0
_LOOK_EVERY_S = 0.2


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process for each further device of this machine, by the command that started this one.

    Lightning kills the first process, with SIGKILL, as soon as another has ended with any code but 0, also where all
    are about to end with the code of a preempted run; and where the first one fails it leaves the others waiting.
    """

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others, then call `function`. They are gone when it has failed, or was preempted."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        if self.cluster_environment.creates_processes_externally:
            end_with_parent()
            return function(*args, **kwargs)
        be_parent()
        self._call_children_scripts()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            return function(*args, **kwargs)
        except Preempted:
            self._end_others(_GRACE_S)
            raise
        except BaseException as error:
            # One that was preempted before it could agree with the others.
            ended_first = lost_others(error) and self._end_others(_GRACE_S)
            self._end_others(0.0)
            if ended_first and any(other.returncode == AGAIN for other in self.procs):
                raise Preempted from None
            raise

    def _end_others(self, grace_s: float) -> bool:
        """Wait for the others, then kill those that are left; True if all ended by themselves."""
        until = time.monotonic() + grace_s
        while time.monotonic() < until and any(other.poll() is None for other in self.procs):
            time.sleep(0.05)
        left = [other for other in self.procs if other.poll() is None]
        for other in left:
            other.kill()
            other.wait()
        return not left

    def _watch(self) -> None:
        """End the run when another process has ended and this one does not notice, as in a collective of NCCL."""
        while (failed := _failed(self.procs)) is None:
            if all(other.poll() is not None for other in self.procs):
                return
            time.sleep(_LOOK_EVERY_S)
        time.sleep(_GRACE_S)
        self._end_others(0.0)
        number = self.procs.index(failed) + 1
        print(f"segkit: process {number} of this run ended with code {failed.returncode}; so do all.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(AGAIN if failed.returncode == AGAIN else 1)


@contextmanager
def others_may_end() -> Iterator[None]:
    """What a collective says when another process is gone becomes one line.

    Raises:
        OthersEnded: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not lost_others(error):
            raise
        reason = str(error).splitlines()[0].partition(" This is typically")[0]
        raise OthersEnded(f"another process of this run has ended; its own message says why ({reason})") from None


def lost_others(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, OthersEnded | dist.DistError) or "gloo/transport" in str(error)


def _failed(processes: list[subprocess.Popen]) -> subprocess.Popen | None:
    return next((p for p in processes if p.poll() not in (None, 0)), None)
