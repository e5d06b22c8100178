"""What coding the masks of a folder use, told from the names of its files and a look into some of them."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segkit.formats.coco_files import find_coco, load_coco
from segkit.formats.files import walk
from segkit.formats.image_files import PICTURE_SUFFIXES, TIFF_SUFFIXES
from segkit.formats.json_files import read_json, records
from segkit.formats.nifti_slices import nifti_case_name
from segkit.formats.png_files import PNG_SIGNATURE, Png
from segkit.formats.tiff_pages import read_layers

# Files looked into, spread over the folder.
_LOOKED_AT = 24
# Of the class files or image names that must fit, since a few may be missing or strange.
_MOST = 0.5
_FEW_ABSENT = 0.02
_MOST_PAGES = 64
# An image without a shape: nobody drew one, or there is nothing; read as nothing and said so.
_UNANNOTATED: dict[str, Any] = {"missing": "empty"}
# What labelme's own tools write for pixels that are not to be looked at.
_LABELME_IGNORE = "__ignore__"


CODEC_TEXTS = {
    "index_png": "one number per pixel in a PNG",
    "palette_png": "one number per pixel in a PNG with a colour table",
    "color_png": "one colour per class in an RGB PNG",
    "file_per_class": "one black-and-white PNG per class",
    "bit_planes": "one bit per class in a PNG",
    "tiff": "numbers or pages of classes in TIFF files",
    "threshold": "gray pictures in which bright pixels are the class",
    "coco": "objects in a COCO JSON file (polygons or run lengths)",
    "labelme": "one labelme JSON file of shapes per image",
    "nifti": "one number per voxel in NIfTI volumes",
}


@dataclass(frozen=True)
class Coding:
    """How files hold masks.

    Attributes:
        codec: its name in `CODECS`.
        text: the same for a person.
        options: of the codec, as far as files tell them.
        classes: their names where the files say them, else None: values are numbers or colours.
        per_class: whether each class is held for itself, so that classes may overlap.
    """

    codec: str
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None

    @property
    def per_class(self) -> bool:
        return self.classes is not None


def find_coding(masks: Path, stems: Iterable[str]) -> Coding:
    """The coding of the masks in a folder, or in a COCO file.

    Of files of several kinds, most decide; the others are faults when they are read.

    Args:
        masks: folder, or a JSON file.
        stems: names of the images, from which the names of masks are made.

    Raises:
        ValueError: nothing there that is a mask.
    """
    if masks.is_file():
        return _json(masks, masks)
    files = _by_suffix(masks)
    if not files:
        pictures = ", ".join(PICTURE_SUFFIXES)
        raise ValueError(f"{masks}: no masks here. Expected NIfTI files, JSON annotations, or pictures ({pictures}).")
    kind, paths = max(files.items(), key=lambda item: len(item[1]))
    if kind == "png":
        return _png(paths, set(stems))
    if kind == "nifti":
        return Coding("nifti", CODEC_TEXTS["nifti"])
    if kind == "tiff":
        return _tiff(list(paths.values()))
    if kind == "json":
        return _json(masks, find_coco(masks) if len(paths) == 1 else min(paths.values()))
    return Coding("threshold", CODEC_TEXTS["threshold"])


def kind_of(png: Png) -> str:
    """What a PNG file stores, in words."""
    if png.palette is not None:
        return "palette PNG"
    if png.pixels.ndim == 3:
        return f"colour PNG of {png.bits} bits per channel"
    return f"gray PNG of {png.bits} bit{'s' if png.bits > 1 else ''}"


def spread(items: list, count: int) -> list:
    """At most `count` of `items`, evenly spread."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if items else []


def _by_suffix(masks: Path) -> dict[str, dict[str, Path]]:
    """Kind of file -> path below the folder without suffix -> file."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for relative, path in walk(masks):
        suffix = path.suffix.lower()
        if nifti_case_name(path) is not None:
            found["nifti"][relative] = path
        elif suffix in (".png", ".json"):
            found[suffix[1:]][relative[: -len(suffix)]] = path
        elif suffix in TIFF_SUFFIXES:
            found["tiff"][relative[: -len(suffix)]] = path
        elif suffix in PICTURE_SUFFIXES:
            found["picture"][relative[: -len(suffix)]] = path
    return dict(found)


def _png(paths: Mapping[str, Path], stems: set[str]) -> Coding:
    names = sorted(paths)
    if not _mostly(name in stems for name in names):
        filed = _per_class(names, stems)
        if filed is not None:
            return filed
    looks = [look for path in spread([paths[n] for n in names], _LOOKED_AT) if (look := _png_header(path)) is not None]
    if not looks:
        raise ValueError(
            f"{paths[names[0]]}: neither this nor other masks here are PNG files, whatever their names say."
        )
    kind = Counter(kind for kind, _ in looks).most_common(1)[0][0]
    if kind == "color_png":
        return Coding(kind, CODEC_TEXTS[kind])
    if kind == "palette_png":
        return Coding(kind, CODEC_TEXTS[kind])
    bits = Counter(bits for other, bits in looks if other == kind).most_common(1)[0][0]
    return Coding(kind, f"one number per pixel in {'an' if bits == 8 else 'a'} {bits}-bit PNG")


def _png_header(path: Path) -> tuple[str, int] | None:
    """(codec, bits per sample) of a PNG file; None for other files, which the survey names."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(PNG_SIGNATURE):
        return None
    bits, kind = head[24:26]
    return {0: "index_png", 3: "palette_png"}.get(kind, "color_png"), bits


def has_transparency(path: Path) -> bool:
    """Whether a PNG file has an alpha channel; False for other files."""
    with path.open("rb") as file:
        head = file.read(26)
    return head.startswith(PNG_SIGNATURE) and len(head) == 26 and head[25] in (4, 6)


def _per_class(names: list[str], stems: set[str]) -> Coding | None:
    """A file per class, where names of files are those of images with something before or behind: the class."""
    for pattern, split in _PATTERNS.items():
        pairs = [pair for name in names if (pair := split(name, stems)) is not None]
        classes = Counter(name for name, _ in pairs)
        # One name alone is a prefix or suffix of all masks, not a class: `a_mask.png` belongs to `a.jpg`.
        enough = len(classes) > 1 or (classes and pattern == "{class}/{stem}.png")
        if enough and len(pairs) >= _MOST * len(names) and (split is not _behind or _repeats(classes, pairs)):
            options = {} if pattern == "{class}/{stem}.png" else {"pattern": pattern}
            text = f"one black-and-white PNG per class, as {pattern}"
            absent = len(classes) * len({stem for _, stem in pairs}) - len(set(pairs))
            if absent > _FEW_ABSENT * len(pairs):
                # Too many to have been forgotten: written are files of classes that are there.
                options["missing"] = "empty"
                text += f"; {absent} class files are absent and taken as empty"
            return Coding("file_per_class", text, options, tuple(sorted(classes)))
    return None


def _repeats(classes: Counter[str], pairs: list[tuple[str, str]]) -> bool:
    """Whether classes come back from image to image, as numbers or dates in a name would not."""
    return len(classes) <= max(1, len({stem for _, stem in pairs})) or len(classes) <= 3


def _folder_first(name: str, stems: set[str]) -> tuple[str, str] | None:
    folder, _, rest = name.partition("/")
    return (folder, rest) if rest in stems else None


def _folder_last(name: str, stems: set[str]) -> tuple[str, str] | None:
    path = PurePosixPath(name)
    stem = path.parent.as_posix()
    return (path.name, stem) if stem in stems else None


def _behind(name: str, stems: set[str]) -> tuple[str, str] | None:
    cuts = [i for i, letter in enumerate(name) if letter == "_"]
    stem = next((name[:i] for i in reversed(cuts) if name[:i] in stems), None)
    return None if stem is None else (name[len(stem) + 1 :], stem)


_PATTERNS = {"{class}/{stem}.png": _folder_first, "{stem}/{class}.png": _folder_last, "{stem}_{class}.png": _behind}


def _json(masks: Path, path: Path) -> Coding:
    """COCO, or a folder of labelme files."""
    values = read_json(path)
    if "shapes" in values:
        labels = Counter(label for file in _json_files(masks) for label in _labels(file))
        if not labels:
            raise ValueError(f"{masks}: no labelme file here holds a shape, so there is no class to find.")
        names = tuple(sorted(labels.keys() - {_LABELME_IGNORE}))
        options = _UNANNOTATED | ({"ignored_values": [_LABELME_IGNORE]} if _LABELME_IGNORE in labels else {})
        return Coding("labelme", CODEC_TEXTS["labelme"], options, names)
    if "annotations" in values and "categories" in values:
        categories = load_coco(path).categories
        names = tuple(dict.fromkeys(categories[key] for key in sorted(categories, key=_category_order)))
        return Coding("coco", CODEC_TEXTS["coco"], _UNANNOTATED, names)
    raise ValueError(f"{path}: neither COCO (`images`, `annotations`, `categories`) nor labelme (`shapes`).")


def _json_files(masks: Path) -> list[Path]:
    return [path for _, path in walk(masks) if path.suffix.lower() == ".json"]


def _labels(path: Path) -> set[str]:
    try:
        return {str(shape.get("label")) for shape in records(read_json(path), "shapes", str(path))}
    except ValueError:
        return set()  # the survey names it


def _category_order(key: Any) -> tuple[bool, Any]:
    return isinstance(key, str), key


def _tiff(paths: list[Path]) -> Coding:
    """A number per pixel, or a page for each class."""
    names: tuple[str, ...] = ()
    layers = 1
    for path in spread(sorted(paths), _LOOKED_AT):
        with contextlib.suppress(ValueError):  # the survey names it
            found = read_layers(path, most=_MOST_PAGES)
            layers, names = found.samples.shape[2], found.names
            break
    if layers == 1:
        return Coding("tiff", "one number per pixel in TIFF files")
    own = [name or str(number) for number, name in enumerate(names or [""] * layers, 1)]
    named = own if len(set(own)) == layers else list(map(str, range(1, layers + 1)))
    return Coding("tiff", f"a page for each of {layers} classes in TIFF files", classes=tuple(named))


def _mostly(truths: Iterable[bool]) -> bool:
    answers = list(truths)
    return bool(answers) and sum(answers) >= _MOST * len(answers)
