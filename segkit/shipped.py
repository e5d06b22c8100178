"""Configs that come with segkit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def shipped_configs() -> dict[str, Path]:
    """By file name without suffix."""
    folder = Path(str(files("segkit"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(config: Path) -> Path:
    """The file itself, or the shipped config of that name.

    Raises:
        ValueError: neither; names those that are shipped.
    """
    if config.is_file():
        return config
    shipped = shipped_configs()
    if config.stem in shipped and config.parent in (Path("."), Path("configs")):
        return shipped[config.stem]
    raise ValueError(f"{config}: no such file. Configs that come with segkit: {', '.join(shipped)}.")
