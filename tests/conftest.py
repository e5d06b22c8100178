"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# Before torch is imported, and for the processes that tests start: tests compute little, and torch's threads wait for
# each other whenever another process holds their core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its interpreter then runs kernels on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("SEGKIT_TEST_DATA", SHARED))
    if not folder.is_dir():
        pytest.skip("real data sets are not here (set SEGKIT_TEST_DATA to their folder)")
    return folder


@pytest.fixture(autouse=True)
def what_is_told() -> None:
    """Commands and libraries set what is logged for the whole process; later tests must not depend on it."""
    log = logging.getLogger("segkit")
    log.setLevel(logging.NOTSET)
    log.disabled, log.propagate = False, True
    logging.getLogger().setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
