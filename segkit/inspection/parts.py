"""Where the parts of a data set lie, from what a person names: a root, or folders of images and masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segkit.data.layouts import Layout, Part, find_layout, recognise

PART_NAMES = ("train", "val", "test")
FOLDERS = "folders"
# Says no more than the names of folders do, which are looked at anyway.
_PLAIN = (None, FOLDERS, "class_folders")


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        root: what paths in a config are relative to, as a person typed it.
        parts: train, val and test as far as they are there.
        config: the `data` section of a config that describes them, without training settings.
        layout: its name, or None for plain folders.
        masks: what the layout says of its masks: the `masks` section of a config.
    """

    root: Path
    parts: dict[str, Part]
    config: dict[str, Any]
    layout: str | None = None
    masks: dict[str, Any] | None = None


def find_source(
    root: Path | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    layout: str | None = None,
    image_pattern: str | None = None,
    mask_pattern: str | None = None,
    bands: Sequence[str] | None = None,
) -> Source:
    """The data set that a person named.

    Args:
        root: with the folders of a layout, or `train/images`, `train/masks` and so on, or `images` and `masks`.
        images, masks: folders in place of a root; masks may be a COCO file.
        layout: a name in `LAYOUTS`; without it, it is told from the folders of `root`. Beside `images` and `masks` it
            only says what the masks mean.
        image_pattern, mask_pattern: how files are named after samples, see `Pattern`.
        bands: what `{band}` in `image_pattern` stands for, where the bands of an image lie in a file each.

    Raises:
        ValueError: names what is missing.
    """
    if (images is None) != (masks is None):
        raise ValueError("--images and --masks go together: give both.")
    if (root is None) == (images is None):
        raise ValueError("give the ROOT of a data set, or --images DIR and --masks DIR; not both.")
    names: dict[str, Any] = {"image_pattern": image_pattern, "mask_pattern": mask_pattern}
    names["bands"] = None if bands is None else [band.strip() for band in bands]
    given = {key: value for key, value in names.items() if value is not None}
    if images is not None and masks is not None:
        part = {"images": str(images), "masks": str(masks), **given}
        here = Path(".")
        parts = {"train": find_layout(FOLDERS).part(here, "train", part)}
        return Source(here, parts, {"root": ".", "train": part}, layout, _named_masks(layout, images, masks))
    assert root is not None
    if layout is None and not root.is_dir():  # a layout may write its data
        raise ValueError(f"{root}: no such folder.")
    name = layout if layout is not None else recognise(root)
    if name in _PLAIN and (layout is None or layout == FOLDERS):
        return _plain(root, given)
    assert name is not None
    return _described(root, name, find_layout(name), given)


def _named_masks(layout: str | None, images: Path, masks: Path) -> dict[str, Any] | None:
    """What `layout` says of masks that lie in a folder of their own."""
    if layout is None:
        return None
    # Names that a data set keeps in a file of its own lie above its images and masks.
    return find_layout(layout).masks(Path(os.path.commonpath([images.absolute(), masks.absolute()]))) or None


def _plain(root: Path, given: dict[str, Any]) -> Source:
    """Folders by the names that people give them."""
    parts = find_layout(FOLDERS).parts(root)
    if not parts:
        raise ValueError(
            f"{root}: no data set that segkit knows by its folders. Expected {find_layout(FOLDERS).expects}; else name "
            "a --layout, or folders with --images DIR and --masks DIR."
        )
    parts = {name: replace(part, **given) for name, part in parts.items()}
    config: dict[str, Any] = {"root": str(root)}
    for name, part in parts.items():
        folders = {"images": part.images, "masks": part.masks}
        config[name] = {key: path.relative_to(root).as_posix() for key, path in folders.items()} | given
    return Source(root, parts, config)


def _described(root: Path, name: str, layout: Layout, given: dict[str, Any]) -> Source:
    """What a layout knows."""
    there = layout.parts(root)
    if not there:
        raise ValueError(f"{root}: is no data set of the layout {name}. Expected: {layout.expects}.")
    parts = {part: layout.part(root, part, given) for part in PART_NAMES if part in there}
    config = {"root": str(root), "layout": name, **{part: dict(given) for part in parts}}
    return Source(root, parts, config, name, layout.masks(root) or None)
