"""How a data set lies on disk: from the section `data` of a config to folders of images and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.data.embedded import write_mni152, write_scene
from segkit.data.patterns import STEM
from segkit.data.splits import read_stem_list
from segkit.suggest import closest

# What a config may say of a part.
PART_KEYS = ("images", "masks", "image_pattern", "mask_pattern", "bands", "list")


@dataclass(frozen=True)
class Part:
    """Where the samples of one part (train, val, test) lie; the arguments of `MaskDataset`.

    Attributes:
        images: folder of images.
        masks: folder of masks.
        stems: the samples to take, or None for all.
        image_pattern, mask_pattern: how files are named after stems, see `Pattern`.
        bands: names of the bands where they lie in a file each, else none.
    """

    images: Path
    masks: Path
    stems: list[str] | None = None
    image_pattern: str = STEM
    mask_pattern: str = STEM
    bands: tuple[str, ...] = ()


Layout = Callable[[Path, str, Mapping[str, Any]], Part]


def open_layout(layout: str, root: str | Path, name: str, part: Mapping[str, Any]) -> Part:
    """Where the part called `name` lies, in a layout of `LAYOUTS`.

    Args:
        name: train, val or test.
        part: some of `PART_KEYS`, as in a config.

    Raises:
        ValueError: an unknown layout or key, with the closest known one; a key that is missing; a list that
            cannot be read.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"data.layout is {layout!r}, which is not known. {closest(layout, LAYOUTS)}")
    return LAYOUTS[layout](Path(root), name, part)


def folders(root: Path, name: str, part: Mapping[str, Any]) -> Part:
    """`{images: DIR, masks: DIR}` below `root`, optionally with `list: FILE`, one stem per line."""
    unknown = [key for key in part if key not in PART_KEYS]
    if unknown:
        raise ValueError(f"data.{name} has no key {unknown[0]!r}. {closest(unknown[0], PART_KEYS)}")
    for key in ("images", "masks"):
        if not isinstance(part.get(key), (str, Path)):
            raise ValueError(f"data.{name} is {dict(part)}: expected {{images: FOLDER, masks: FOLDER}}.")
    listed = part.get("list")
    return Part(
        images=root / part["images"],
        masks=root / part["masks"],
        stems=None if listed is None else read_stem_list(root / listed),
        image_pattern=part.get("image_pattern", STEM),
        mask_pattern=part.get("mask_pattern", STEM),
        bands=tuple(part.get("bands", ())),
    )


def generated(write: Callable[[Path], Any]) -> Layout:
    """A layout that writes its data as `root` when they are not there, and then is `folders` that need no names."""

    def layout(root: Path, name: str, part: Mapping[str, Any]) -> Part:
        write(root)
        return folders(root, name, {"images": f"{name}/images", "masks": f"{name}/masks", **part})

    return layout


LAYOUTS: dict[str, Layout] = {
    "folders": folders,
    "scene": generated(write_scene),
    "mni152": generated(write_mni152),
}
