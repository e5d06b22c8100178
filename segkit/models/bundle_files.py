"""The files of a bundle: where they lie and what their description says."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segkit._version import __version__

WEIGHTS, DESCRIPTION = "model.safetensors", "segkit.json"


def find_bundle(path: Path) -> Path:
    """The bundle itself, given a bundle or a run folder that holds one."""
    for folder in (path, path / "model"):
        if (folder / DESCRIPTION).is_file():
            return folder
    found = "no such folder" if not path.exists() else f"holds neither {DESCRIPTION} nor model/{DESCRIPTION}"
    raise ValueError(f"{path}: {found}; expected a run folder or a bundle that segkit wrote.")


def read_description(folder: Path) -> dict[str, Any]:
    """What `segkit.json` says."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / DESCRIPTION}: cannot be read as JSON: {error}") from error
    if not isinstance(described, dict) or "format" not in described:
        raise ValueError(f"{folder / DESCRIPTION}: expected an object with the keys of a bundle.")
    return described


def installed_versions() -> dict[str, str]:
    """Versions of segkit and of what decides its results."""
    versions = {"segkit": __version__}
    for package in ("torch", "segmentation-models-pytorch", "timm", "lightning", "albumentations", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
