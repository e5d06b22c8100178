"""All layouts by name, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkit.data.embedded import MNI152_CLASSES, SCENE_CLASSES, write_mni152, write_scene
from segkit.data.sets.folders import ClassFolders, Folders, Generated
from segkit.data.sets.layout import Layout
from segkit.data.sets.layout import Part as Part
from segkit.data.sets.medical import Chase, Drive, Isic, Kvasir, Stare
from segkit.data.sets.photographs import Ade20k, Coco, CocoStuff, OxfordPet, Voc
from segkit.data.sets.streets import CamVid, CamVid32, Cityscapes
from segkit.data.sets.volumes import Decathlon, NnUnet
from segkit.suggest import closest

LAYOUTS: dict[str, Layout] = {
    "folders": Folders(),
    "class_folders": ClassFolders(),
    "voc": Voc(),
    "cityscapes": Cityscapes(),
    "camvid": CamVid(),
    "camvid_32": CamVid32(),
    "ade20k": Ade20k(),
    "coco": Coco(),
    "coco_stuff": CocoStuff(),
    "oxford_pet": OxfordPet(),
    "kvasir": Kvasir(),
    "isic": Isic(),
    "drive": Drive(),
    "chase": Chase(),
    "stare": Stare(),
    "msd": Decathlon(),
    "nnunet": NnUnet(),
    "scene": Generated(
        write_scene,
        {"format": "multiclass", "classes": list(SCENE_CLASSES), "codec": "index_png", "ignored_values": [255]},
    ),
    "mni152": Generated(write_mni152, {"format": "multiclass", "classes": list(MNI152_CLASSES), "codec": "index_png"}),
}


def find_layout(name: str) -> Layout:
    """The layout called `name` in `LAYOUTS`.

    Raises:
        ValueError: an unknown name, with the closest known one.
    """
    if name not in LAYOUTS:
        raise ValueError(f"data.layout is {name!r}, which is not known. {closest(name, LAYOUTS)}")
    return LAYOUTS[name]


def open_layout(layout: str, root: str | Path, name: str, part: Mapping[str, Any]) -> Part:
    """Where the part called `name` lies, in a layout of `LAYOUTS`.

    Args:
        name: train, val or test.
        part: some of `PART_KEYS`, as in a config; they go before what the layout says.

    Raises:
        ValueError: an unknown layout or key, with the closest known one; a part that is not there; a list that
            cannot be read.
    """
    return find_layout(layout).part(Path(root), name, part)


def recognise(root: str | Path) -> str | None:
    """The name of the layout that `root` has, or None: plain folders, whose masks may mean anything, have none."""
    root = Path(root)
    if not root.is_dir():
        return None
    for name, layout in LAYOUTS.items():
        try:
            if layout.recognises(root):
                return name
        except ValueError:  # a file that another layout would read otherwise
            continue
    return None
