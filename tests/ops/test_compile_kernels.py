"""Every kernel compiles for GPUs from Turing to Hopper; no GPU is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("capability", [75, 90])
def test_kernels_compile(tmp_path, capability):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.update(TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.ops.compile_kernels", str(capability)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
