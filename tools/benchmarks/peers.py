"""Other people's packages: imported when a row needs them, and named when they are not there."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Distribution -> what installs it; `docs/benchmarks.md` says why nnU-Net is taken without its dependencies.
INSTALL = {
    "segmentation-models-pytorch": "pip install segmentation-models-pytorch",
    "torchmetrics": "pip install torchmetrics",
    "albumentations": "pip install albumentations",
    "lightning": "pip install lightning",
    "monai": "pip install '.[bench]'",
    "nnunetv2": "pip install --no-deps nnunetv2",
}


class Absent(Exception):
    """A contender that cannot be measured here; the message says why."""


def peer(distribution: str, module: str) -> Any:
    """A module of a peer.

    Args:
        distribution: a name of `INSTALL`.
        module: dotted name of what to import from it.

    Raises:
        Absent: it is not installed, or lacks something of its own.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"not installed ({error}); {INSTALL[distribution]}") from error


def peer_versions() -> dict[str, str | None]:
    """Version of each peer, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for distribution in INSTALL:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = None
    return found
