"""Plain folders of images and masks, one folder per class, and sets that are written when they are first opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segkit.data.images import find_images
from segkit.data.sets.layout import Layout, Part, first_folder
from segkit.formats.files import walk

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "gt")
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Folders(Layout):
    """`{images: DIR, masks: DIR}` below the root, named by the config or by custom: `train/images`, `images/train`."""

    expects = "folders such as train/images and train/masks, images/train and masks/train, or images and masks"

    def parts(self, root: Path) -> dict[str, Part]:
        found = {}
        for name, folders in _PARTS.items():
            part = next(filter(None, (_in_part(root, f) or _by_part(root, f) for f in folders)), None)
            if part is not None:
                found[name] = part
        if not found:
            images, masks = first_folder(root, *_IMAGES), first_folder(root, *_MASKS)
            if images is not None and masks is not None:
                found["train"] = Part(images, masks)
        return found

    def masks(self, root: Path) -> dict[str, Any]:
        return {}

    def recognises(self, root: Path) -> bool:
        return False  # says nothing about what the masks mean

    def _absent_text(self, root: Path, name: str, given: Mapping[str, Any], known: Any) -> str:
        if given:
            return f"data.{name} is {dict(given)}: expected {{images: FOLDER, masks: FOLDER}}."
        return super()._absent_text(root, name, given, known)


class ClassFolders(Folders):
    """Images, and one folder per class with a black and white PNG for each image: `masks/CLASS/a.png`."""

    expects = "images/a.jpg and masks/CLASS/a.png, both also below train, val and test"

    def parts(self, root: Path) -> dict[str, Part]:
        return {name: part for name, part in super().parts(root).items() if _class_names(part.masks)}

    def masks(self, root: Path) -> dict[str, Any]:
        names = sorted({name for part in self.parts(root).values() for name in _class_names(part.masks)})
        if not names:
            raise ValueError(f"{root}: no folders of classes here. Expected: {self.expects}.")
        return {"format": "multilabel", "classes": names, "codec": {"name": "file_per_class"}}

    def recognises(self, root: Path) -> bool:
        parts = self.parts(root)
        return bool(parts) and all(map(_files_are_per_class, parts.values()))


class Generated(Folders):
    """A set that is written below the root when it is not there: `{train,val,test}/{images,masks}`."""

    expects = "nothing: it is written on first use"

    def __init__(self, write: Callable[[Path], Any], masks: Mapping[str, Any]) -> None:
        self._write, self._masks = write, masks

    def parts(self, root: Path) -> dict[str, Part]:
        self._write(root)
        return super().parts(root)

    def masks(self, root: Path) -> dict[str, Any]:
        return dict(self._masks)


def _in_part(root: Path, part: str) -> Part | None:
    """`train/images` and `train/masks`."""
    images = first_folder(root, *(f"{part}/{name}" for name in _IMAGES))
    masks = first_folder(root, *(f"{part}/{name}" for name in _MASKS))
    return None if images is None or masks is None else Part(images, masks)


def _by_part(root: Path, part: str) -> Part | None:
    """`images/train` and `masks/train`."""
    images = first_folder(root, *(f"{name}/{part}" for name in _IMAGES))
    masks = first_folder(root, *(f"{name}/{part}" for name in _MASKS))
    return None if images is None or masks is None else Part(images, masks)


def _class_names(masks: Path) -> list[str]:
    """Folders right below `masks`, if there is nothing else."""
    entries = [path for path in masks.iterdir() if not path.name.startswith(".")] if masks.is_dir() else []
    return sorted(path.name for path in entries) if entries and all(path.is_dir() for path in entries) else []


def _files_are_per_class(part: Part) -> bool:
    """Whether the masks lie below a class under the names of the images; `images/town/a` may mean `masks/town/a`."""
    images = set(find_images(part.images))
    names = [relative.rsplit(".", 1)[0] for relative, path in walk(part.masks) if path.suffix.lower() == ".png"]
    return bool(names) and all(n not in images and n.split("/", 1)[-1] in images for n in names)
