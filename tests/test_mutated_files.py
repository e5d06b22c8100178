"""10,000 damaged files over the readers of images and masks: an array or a ValueError that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="peak memory is measured with getrusage")

ROOT = Path(__file__).resolve().parents[1]
# Tiny files: half a millisecond each. A process of its own for each group, whose start takes longer.
COUNTS = {"png": 2000, "photo": 1500, "plain": 1500, "tiff": 2000, "volume": 1000, "codec": 2000}


def read_mutated(group: str, count: int, folder: Path, **variables: str) -> tuple[int, dict, str]:
    """(exit code, what the process reports, the file it was at and what it said)."""
    progress = folder / "progress"
    variables = {"PYTHONPATH": str(ROOT), "MUTATED_PROGRESS": str(progress), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutated_files", group, str(count)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        errors="replace",
    )
    report = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    at = progress.read_text(errors="replace") if progress.exists() else ""
    return done.returncode, report, f"at {at}: {done.stderr[-3000:]}"


@pytest.mark.parametrize("group", COUNTS)
def test_damaged_files_are_read_or_refused_by_name(group, tmp_path):
    code, report, said = read_mutated(group, COUNTS[group], tmp_path)
    assert code == 0, f"the process that read {group} files died, {said}"
    assert report["read"] == COUNTS[group]
    assert report["faults"] == [], f"repeat one with `python -m tests.mutated_files {group} COUNT NUMBER`"
    # Files that are all refused at their first byte would show nothing.
    assert min(report["shares"].values()) > 0.05, report["shares"]


def test_there_are_ten_thousand():
    assert sum(COUNTS.values()) == 10_000
