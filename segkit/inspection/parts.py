"""Where the parts of a data set lie, from what a person names: a root, or folders of images and masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.data.layouts import Part

PART_NAMES = ("train", "val", "test")
# What folders of masks are called, beside folders called `images`.
_MASK_FOLDERS = ("masks", "labels")
_PART_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        root: what paths in a config are relative to, as a person typed it.
        parts: train, val and test as far as they are there.
        config: the `data` section of a config that describes them, without training settings.
        layout: its name, or None.
        masks: what the layout says of its masks: the `masks` section of a config.
    """

    root: Path
    parts: dict[str, Part]
    config: dict[str, Any]
    layout: str | None = None
    masks: dict[str, Any] | None = None


def find_source(
    root: Path | None = None, images: Path | None = None, masks: Path | None = None, layout: str | None = None
) -> Source:
    """The data set that a person named.

    Args:
        root: with the folders of a layout, or `train/images`, `train/masks` and so on, or `images` and `masks`.
        images, masks: folders in place of a root.
        layout: its name; without it, it is told from the folders.

    Raises:
        ValueError: names what is missing.
    """
    if (images is None) != (masks is None):
        raise ValueError("--images and --masks go together: give both.")
    if (root is None) == (images is None):
        raise ValueError("give the ROOT of a data set, or --images DIR and --masks DIR; not both.")
    if images is not None and masks is not None:
        parts = {"train": {"images": str(images), "masks": str(masks)}}
        return Source(Path("."), _open(Path("."), parts), {"root": ".", **parts})
    assert root is not None
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder.")
    parts = _folders(root)
    if not parts:
        raise ValueError(
            f"{root}: no data set that segkit knows by its folders. Expected `train/images` and `train/masks` (or "
            "`labels`), also for `val` and `test`, or `images` and `masks`; else name folders with --images DIR and "
            "--masks DIR."
        )
    return Source(root, _open(root, parts), {"root": str(root), **parts})


def _folders(root: Path) -> dict[str, dict[str, str]]:
    found = {}
    for part in PART_NAMES:
        for folder in _PART_FOLDERS[part]:
            pair = _pair(root, f"{folder}/")
            if pair is not None:
                found[part] = pair
                break
    if not found and (pair := _pair(root, "")) is not None:
        found["train"] = pair
    return found


def _pair(root: Path, before: str) -> dict[str, str] | None:
    masks = next((before + name for name in _MASK_FOLDERS if (root / before / name).is_dir()), None)
    if masks is None or not (root / before / "images").is_dir():
        return None
    return {"images": before + "images", "masks": masks}


def _open(root: Path, parts: dict[str, dict[str, str]]) -> dict[str, Part]:
    return {name: Part(root / part["images"], root / part["masks"]) for name, part in parts.items()}
