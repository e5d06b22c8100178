"""Street scenes: Cityscapes, and CamVid in its two distributions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from segkit.data.sets.folders import Folders
from segkit.data.sets.layout import Layout, Part, colored, first_folder, split_parts
from segkit.formats.classes import RGB

# id in `*_labelIds.png` -> name and colour of the 19 classes that are trained and scored (Cordts et al., CVPR 2016).
CITYSCAPES: dict[int, tuple[str, RGB]] = {
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
_CITYSCAPES_IDS = 34
# The 32 colours of the database (Brostow, Fauqueur and Cipolla, 2009); `Void` is what nobody named.
CAMVID_COLORS: dict[str, RGB] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}
# The 11 classes that SegNet made of them, in the order of their ids, and what each mostly consists of.
_CAMVID_11 = {
    "sky": "Sky",
    "building": "Building",
    "pole": "Column_Pole",
    "road": "Road",
    "pavement": "Sidewalk",
    "tree": "Tree",
    "sign": "SignSymbol",
    "fence": "Fence",
    "car": "Car",
    "pedestrian": "Pedestrian",
    "bicyclist": "Bicyclist",
}
_CAMVID_VOID = 11
# Frames are named by the film they were taken from.
_CAMVID_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+(_L)?")
_SEEN = 20


class Cityscapes(Layout):
    """`leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png` with `gtFine/.../..._gtFine_labelIds.png`.

    Labels of the test part are not given out: its files say *ignored* everywhere.
    """

    expects = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"

    def parts(self, root: Path) -> dict[str, Part]:
        return split_parts(
            root,
            "leftImg8bit/{part}",
            "gtFine/{part}",
            {"train": "train", "val": "val"},
            image_pattern="{stem}_leftImg8bit",
            mask_pattern="{stem}_gtFine_labelIds",
        )

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "multiclass",
            "classes": colored(dict(CITYSCAPES.values())),
            "codec": {"name": "index_png", "values": {number: name for number, (name, _) in CITYSCAPES.items()}},
            "ignored_values": [number for number in range(_CITYSCAPES_IDS) if number not in CITYSCAPES],
        }


class CamVid(Layout):
    """11 classes at 360 x 480: SegNet's `train` and `trainannot`, or `train/images` and `train/masks`."""

    expects = "train and trainannot, val and valannot, test and testannot; or train/images and train/masks, ..."

    def parts(self, root: Path) -> dict[str, Part]:
        names = {name: name for name in ("train", "val", "test")}
        return split_parts(root, "{part}", "{part}annot", names) or Folders().parts(root)

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "multiclass",
            "classes": colored({name: CAMVID_COLORS[original] for name, original in _CAMVID_11.items()}),
            "codec": "index_png",
            "ignored_values": [_CAMVID_VOID],
        }

    def recognises(self, root: Path) -> bool:
        return bool(self.parts(root)) and all(_are_frames(part.masks) for part in self.parts(root).values())


class CamVid32(Layout):
    """The database as Cambridge hands it out: frames at 720 x 960 and masks in 32 colours, without a split."""

    expects = "701_StillsRaw_full/*.png and LabeledApproved_full/*_L.png"

    def parts(self, root: Path) -> dict[str, Part]:
        images = first_folder(root, "701_StillsRaw_full", "*StillsRaw*", "images")
        masks = first_folder(root, "LabeledApproved_full", "*Labeled*", "labels", "masks")
        if images is None or masks is None:
            return {}
        return {"train": Part(images, masks, mask_pattern="{stem}_L")}

    def masks(self, root: Path) -> dict[str, Any]:
        colors = _label_colors(root / "label_colors.txt")
        void = colors.pop("Void", None)
        return {
            "format": "multiclass",
            "classes": colored(colors),
            "codec": "color_png",
            "ignored_values": [] if void is None else [list(void)],
        }

    def recognises(self, root: Path) -> bool:
        return bool(self.parts(root)) and all(_are_frames(part.masks, "_L") for part in self.parts(root).values())


def _are_frames(folder: Path, ending: str = "") -> bool:
    """Whether the first files of a folder are named like frames of CamVid."""
    names = sorted(path.stem for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))[:_SEEN]
    matches = [_CAMVID_FRAME.fullmatch(name) for name in names]
    return bool(names) and all(match is not None and (match[2] or "") == ending for match in matches)


def _label_colors(path: Path) -> dict[str, RGB]:
    """Name -> colour from lines `64 128 64<tab>Animal`; the official ones where there is no such file."""
    if not path.is_file():
        return dict(CAMVID_COLORS)
    colors: dict[str, RGB] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 4 or not all(word.isdecimal() and int(word) < 256 for word in words[:3]):
            raise ValueError(f"{path}, line {number}: {line!r}, expected red, green, blue and the name of a class.")
        colors[words[3]] = int(words[0]), int(words[1]), int(words[2])
    return colors
