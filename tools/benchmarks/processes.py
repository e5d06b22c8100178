"""Python processes of their own that import the segkit and the benchmarks that this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import segkit


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end.

    Another checkout may be the installed one: a number for the wrong segkit is worse than none.
    """
    folders = [Path(__file__).resolve().parents[1], Path(segkit.__file__).resolve().parents[1]]
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
