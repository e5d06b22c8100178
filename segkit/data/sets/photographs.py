"""Photographs of everyday scenes: Pascal VOC, ADE20K, COCO, COCO-Stuff and the Oxford-IIIT pets."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from segkit.data.sets.layout import Layout, Part, colored, first_folder, read_names, split_parts
from segkit.data.splits import read_stem_list
from segkit.formats.classes import RGB
from segkit.formats.coco_files import load_coco

_VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""
# Ids 1 to 90, of which ten were never given to anything.
_COCO_THINGS = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, , stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, , backpack, umbrella, , ,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, , dining table, , , toilet, , tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, , book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
"""
# Ids 92 to 182 of COCO-Stuff (Caesar, Uijlings and Ferrari, CVPR 2018).
_COCO_STUFF = """
    banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other ceiling-tile cloth
    clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence floor-marble floor-other floor-stone
    floor-tile floor-wood flower fog food-other fruit furniture-other grass gravel ground-other hill house leaves
    light mat metal mirror-stuff moss mountain mud napkin net paper pavement pillow plant-other plastic platform
    playingfield railing railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow solid-other
    stairs stone straw structural-other table tent textile-other towel tree vegetable wall-brick wall-concrete
    wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind window-other wood
"""
VOC = _VOC.split()
COCO_THINGS = {number: name.strip() for number, name in enumerate(_COCO_THINGS.split(","), 1) if name.strip()}
COCO_STUFF = dict(enumerate(_COCO_STUFF.split(), 92))
_UNLABELLED = 255
_ADE20K_CLASSES = 150
_YEARS = ("2017", "2014", "")


class Voc(Layout):
    """`JPEGImages/a.jpg` with `SegmentationClass/a.png`, the parts in `ImageSets/Segmentation/train.txt`."""

    expects = "JPEGImages, SegmentationClass and ImageSets/Segmentation/{train,val}.txt (the folder VOC2012)"

    def parts(self, root: Path) -> dict[str, Part]:
        lists = {name: root / "ImageSets" / "Segmentation" / f"{name}.txt" for name in ("train", "val", "test")}
        images, masks = root / "JPEGImages", root / "SegmentationClass"
        if not (images.is_dir() and masks.is_dir()):
            return {}
        # The labels of the test part are not given out.
        found = {name: read_stem_list(path) for name, path in lists.items() if path.is_file()}
        return {
            name: Part(images, masks, stems)
            for name, stems in found.items()
            if name != "test" or (masks / f"{stems[0]}.png").is_file()
        }

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "multiclass",
            "classes": colored({name: voc_color(number) for number, name in enumerate(VOC)}),
            "codec": "palette_png",
            "ignored_values": [_UNLABELLED],
        }


class Ade20k(Layout):
    """Scene parsing with 150 classes: `images/training/a.jpg` with `annotations/training/a.png`, 0 where unlabelled."""

    expects = "images/{training,validation} and annotations/{training,validation} (the folder ADEChallengeData2016)"

    def parts(self, root: Path) -> dict[str, Part]:
        names = {"train": "training", "val": "validation"}
        return split_parts(root, "images/{part}", "annotations/{part}", names)

    def masks(self, root: Path) -> dict[str, Any]:
        names = _ade20k_names(root / "objectInfo150.txt")
        return {
            "format": "multiclass",
            "classes": list(names.values()),
            "codec": {"name": "index_png", "values": names},
            "ignored_values": [0],
        }

    def recognises(self, root: Path) -> bool:
        # Other sets have images/training as well.
        return bool(self.parts(root)) and any(root.glob("annotations/*/ADE_*.png"))


class Coco(Layout):
    """Objects in `annotations/instances_train2017.json`, pictures in `train2017`, `images/train2017` or `images`.

    Also `train/_annotations.coco.json` beside the pictures.
    """

    expects = "annotations/instances_train2017.json and train2017, images/train2017 or images"

    def parts(self, root: Path) -> dict[str, Part]:
        found = {}
        for name in ("train", "val", "test"):
            for folder in [f"{name}{year}" for year in _YEARS]:
                file = root / "annotations" / f"instances_{folder}.json"
                if name in found or not file.is_file():
                    continue
                own, shared = first_folder(root, f"images/{folder}", folder), root / "images"
                if own is not None:
                    found[name] = Part(own, file)
                elif _holds_pictures(shared, file):
                    # Pictures of several parts in one folder: each file says which are its own.
                    found[name] = Part(shared, file, list(load_coco(file).images))
            beside = root / ("valid" if name == "val" else name) / "_annotations.coco.json"
            if name not in found and beside.is_file():
                found[name] = Part(beside.parent, beside)
        return found

    def masks(self, root: Path) -> dict[str, Any]:
        files = [part.masks for part in self.parts(root).values()]
        if not files:
            raise ValueError(f"{root}: no file of objects here. Expected: {self.expects}.")
        categories = load_coco(min(files, key=lambda path: path.stat().st_size)).categories
        names = [name for _, name in sorted(categories.items())]
        # An image without objects was looked at as well.
        return {"format": "multilabel", "classes": names, "codec": {"name": "coco", "missing": "empty"}}


class CocoStuff(Layout):
    """80 things and 91 stuffs, one per pixel: `train2017/a.jpg` with `stuffthingmaps/train2017/a.png`.

    Its authors unpack into `images/train2017` and `annotations/train2017`.
    """

    expects = "stuffthingmaps/{train2017,val2017} (or annotations/...) and train2017 or images/train2017"

    def parts(self, root: Path) -> dict[str, Part]:
        names = {"train": "train2017", "val": "val2017"}
        folders = product(("images/{part}", "{part}"), ("stuffthingmaps/{part}", "annotations/{part}"))
        return next(filter(None, (split_parts(root, *pair, names) for pair in folders)), {})

    def masks(self, root: Path) -> dict[str, Any]:
        # A pixel holds the id of its category less one.
        values = {number - 1: name for number, name in (COCO_THINGS | COCO_STUFF).items()}
        return {
            "format": "multiclass",
            "classes": list(values.values()),
            "codec": {"name": "index_png", "values": values},
            "ignored_values": [_UNLABELLED],
        }


class OxfordPet(Layout):
    """`images/a.jpg` with `annotations/trimaps/a.png`: 1 pet, 2 background, 3 the border, which is left out."""

    expects = "images, annotations/trimaps, annotations/trainval.txt and annotations/test.txt"

    def parts(self, root: Path) -> dict[str, Part]:
        images, folder = root / "images", root / "annotations"
        if not (images.is_dir() and (folder / "trimaps").is_dir()):
            return {}
        lists = {"train": folder / "trainval.txt", "test": folder / "test.txt"}
        return {
            name: Part(images, folder / "trimaps", read_names(path)) for name, path in lists.items() if path.is_file()
        }

    def masks(self, root: Path) -> dict[str, Any]:
        return {
            "format": "binary",
            "classes": ["pet"],
            "codec": {"name": "index_png", "values": {1: "pet", 2: "background"}},
            "ignored_values": [3],
        }


def voc_color(number: int) -> RGB:
    """Colour of class `number` in the development kit of VOC: bits 0, 1, 2 of each octal digit go to R, G and B."""
    parts = [0, 0, 0]
    for digit in range(3):
        for band in range(3):
            parts[band] |= (number >> (3 * digit + band) & 1) << (7 - digit)
    red, green, blue = parts
    return red, green, blue


def _holds_pictures(folder: Path, file: Path) -> bool:
    """Whether a folder has pictures of a file of objects; `images` may hold those of another part alone."""
    return folder.is_dir() and any((folder / image.file_name).is_file() for image in load_coco(file).images.values())


def _ade20k_names(path: Path) -> dict[int, str]:
    """Value -> first name of each class, from columns Idx, ..., Name; values where there is no such file."""
    if not path.is_file():
        return {number: str(number) for number in range(1, _ADE20K_CLASSES + 1)}
    names: dict[int, str] = {}
    header, *lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    columns = [column.strip() for column in header.split("\t")]
    for line in filter(str.strip, lines):
        row = dict(zip(columns, (field.strip() for field in line.split("\t")), strict=False))
        if not row.get("Idx", "").isdecimal() or not row.get("Name"):
            raise ValueError(f"{path}: {line!r}, expected the columns Idx and Name, divided by tabs.")
        first = row["Name"].split(",")[0].strip()
        names[int(row["Idx"])] = row["Name"] if first in names.values() else first
    return names
