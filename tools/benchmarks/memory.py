"""Peak memory of one call, measured by the kernel in a fresh process.

A process of its own, because an allocator that has been used hides what a call needs. The kernel's own high-water
mark, because a thread that samples misses the peak.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import Absent
from benchmarks.processes import run_python
from benchmarks.timing import Contender, Run, Settings

_MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Exit status of a child that says on stdout why there is nothing to measure.
_ABSENT = 3


def peak_mib(case: str, contender: str, settings: Settings) -> float:
    """Peak memory of one call beyond what was there before it, in MiB.

    Args:
        case: a name of `CASES` in `benchmarks.losses` or `benchmarks.windows`.
        contender: a name in that case.

    Raises:
        Absent: the contender is not installed, or this system cannot tell.
        RuntimeError: the process failed; the message holds its last words.
    """
    request: dict[str, Any] = {
        "case": case,
        "contender": contender,
        "device": str(settings.device),
        "small": settings.small,
    }
    request["threads"] = torch.get_num_threads()
    done = run_python("-m", "benchmarks.memory", json.dumps(request))
    if done.returncode == _ABSENT:
        raise Absent(done.stdout.strip())
    if done.returncode:
        raise RuntimeError(f"memory of {contender} ({case}) could not be measured:\n{done.stderr[-2000:]}")
    return float(done.stdout)


def measure_here(case: str, contender: str, settings: Settings) -> float:
    """`peak_mib` in this process."""
    from benchmarks import losses, windows

    cases = {**losses.CASES, **windows.CASES}
    # The same on tiny tensors first: threads, kernels and autograd take their own memory once.
    _run_of(cases[case](replace(settings, small=True)).contenders, contender)()
    run = _run_of(cases[case](settings).contenders, contender)
    if settings.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        returned = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del returned
        return peak / _MIB
    before_mib = reset_high_water_mib()
    returned = run()
    peak_above_mib = _status_mib("VmHWM") - before_mib
    del returned
    return peak_above_mib


def reset_high_water_mib() -> float:
    """Set the kernel's high-water mark of this process to what it holds now; that, in MiB.

    Raises:
        Absent: not Linux, or a container that forbids it.
    """
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        raise Absent(f"peak memory cannot be measured here: {error}") from error
    return _status_mib("VmRSS")


def _status_mib(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found, key
    return int(found.group(1)) / 1024


def _run_of(contenders: Sequence[Contender], name: str) -> Run:
    (contender,) = [c for c in contenders if c.name == name]
    return contender.prepare()


def _main(text: str) -> int:
    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    settings = Settings(torch.device(request["device"]), rounds=1, small=request["small"])
    try:
        print(measure_here(request["case"], request["contender"], settings))
    except Absent as reason:
        print(reason)
        return _ABSENT
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
