"""Pairs of medical pictures and binary masks: Kvasir-SEG, ISIC, DRIVE, CHASE_DB1 and STARE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segkit.data.images import find_images
from segkit.data.sets.layout import Layout, Part, first_folder, split_parts

_SEEN = 20
# The split most papers use: the first twenty pictures in the order of their names.
_CHASE_TRAIN = 20


class Kvasir(Layout):
    """Polyps: `images/a.jpg` with `masks/a.jpg`, black and white up to what JPEG does to it."""

    expects = "images and masks, both of JPEG files of the same names (the folder Kvasir-SEG)"

    def parts(self, root: Path) -> dict[str, Part]:
        return split_parts(root, "images", "masks", {"train": ""})

    def masks(self, root: Path) -> dict[str, Any]:
        return {"format": "binary", "classes": ["polyp"], "codec": "threshold"}

    def recognises(self, root: Path) -> bool:
        # Endoscopic pictures are named by random words that begin alike.
        names = sorted(path.name for path in root.glob("masks/*.jpg"))[:_SEEN]
        return bool(names) and bool(self.parts(root)) and all(name.startswith(("cju", "ck2")) for name in names)


class Isic(Layout):
    """Skin lesions: `*_Data/ISIC_x.jpg` (or `*_Input`) with `*_GroundTruth/ISIC_x_segmentation.png`."""

    expects = "*_Training_Data or *_Training_Input, and *_Training*_GroundTruth of task 1; likewise Validation and Test"

    def parts(self, root: Path) -> dict[str, Part]:
        found = {}
        for name, word in (("train", "Training"), ("val", "Validation"), ("test", "Test")):
            images = first_folder(root, f"*{word}*_Input", f"*{word}*_Data")
            masks = first_folder(root, f"*Task1_{word}*_GroundTruth", f"*Part1*{word}*_GroundTruth",
                                 f"*{word}*Part1_GroundTruth", f"*{word}*_GroundTruth")  # fmt: skip
            if images is not None and masks is not None:
                capital = any(masks.glob("*_Segmentation.png"))  # in 2016
                pattern = "{stem}_Segmentation" if capital else "{stem}_segmentation"
                found[name] = Part(images, masks, _without_superpixels(images), mask_pattern=pattern)
        return found

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "binary",
            "classes": ["lesion"],
            "codec": {"name": "index_png", "values": {0: "background", 255: "lesion"}},
        }

    def recognises(self, root: Path) -> bool:
        return any(any(part.images.glob("ISIC_*")) for part in self.parts(root).values())


class Drive(Layout):
    """Retinal vessels: `training/images/21_training.tif` with `training/1st_manual/21_manual1.gif`."""

    expects = "training/images/*_training.tif and training/1st_manual/*_manual1.gif; likewise test/images/*_test.tif"

    def parts(self, root: Path) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for name, folder in (("train", "training"), ("test", "test")):
            patterns = {"image_pattern": f"{{stem}}_{folder}", "mask_pattern": "{stem}_manual1"}
            found |= split_parts(root, "{part}/images", "{part}/1st_manual", {name: folder}, **patterns)
        return found

    def masks(self, root: Path) -> dict[str, Any]:
        return {"format": "binary", "classes": ["vessel"], "codec": "threshold"}


class Chase(Layout):
    """Retinal vessels, all in one folder: `Image_01L.jpg` with `Image_01L_1stHO.png` and `Image_01L_2ndHO.png`.

    The first twenty pictures are the training part.
    """

    expects = "Image_01L.jpg, Image_01L_1stHO.png, ... in one folder"

    def parts(self, root: Path) -> dict[str, Part]:
        if not any(root.glob("Image_*_1stHO.png")):
            return {}
        stems = [stem for stem in find_images(root) if stem.startswith("Image_") and not stem.endswith("HO")]
        shares = {"train": stems[:_CHASE_TRAIN], "test": stems[_CHASE_TRAIN:]}
        return {name: Part(root, root, share, mask_pattern="{stem}_1stHO") for name, share in shares.items() if share}

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "binary",
            "classes": ["vessel"],
            "codec": {"name": "index_png", "values": {0: "background", 255: "vessel"}},
        }


class Stare(Layout):
    """Retinal vessels: `stare-images/im0001.ppm` with `labels-ah/im0001.ah.ppm`, or all in one folder."""

    expects = "stare-images/im0001.ppm and labels-ah/im0001.ah.ppm, unpacked; or both in one folder"

    def parts(self, root: Path) -> dict[str, Part]:
        masks = first_folder(root, "labels-ah") or root
        images = first_folder(root, "stare-images", "images") or root
        stems = [path.name.removesuffix(".ah.ppm") for path in sorted(masks.glob("im*.ah.ppm"))]
        # Of 397 pictures twenty are labelled.
        return {"train": Part(images, masks, stems, mask_pattern="{stem}.ah")} if stems else {}

    def masks(self, root: Path) -> dict[str, Any]:
        return {"format": "binary", "classes": ["vessel"], "codec": "threshold"}


def _without_superpixels(images: Path) -> list[str] | None:
    """Names of the pictures of 2017, beside which their superpixels lie; None where all files are pictures."""
    names = list(find_images(images))
    pictures = [name for name in names if not name.endswith("_superpixels")]
    return None if len(pictures) == len(names) else pictures
