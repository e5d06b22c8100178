"""COCO instance files: found, checked and indexed once, and written record by record."""

from __future__ import annotations

import json
import marshal
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from segkit.formats.files import check_stem, file_stamp, is_shown, writing_whole
from segkit.formats.json_files import read_json, records
from segkit.formats.nifti_slices import nifti_case_name

DEFAULT_NAME = "annotations.json"
SUFFIX = ".json"
# Of an image record, beside COCO's own: this image was looked at, and what has no annotation is not there.
ANNOTATED = "annotated"

_SHOWN = 5
# The parts of a data set, and predictions beside them.
_CACHED_FILES = 4
_KEPT = ("id", "category_id", "segmentation", "iscrowd")

Id = int | str


@dataclass(frozen=True)
class CocoImage:
    """One record under `images`."""

    id: Id
    file_name: str
    height: Any
    width: Any
    annotated: bool


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An instance file by stem.

    Attributes:
        path: the file.
        images: stem -> image.
        categories: id -> name.
        used: ids of the categories that have annotations.
    """

    path: Path
    images: Mapping[str, CocoImage]
    categories: Mapping[Id, str]
    used: frozenset[Id]
    # As bytes of `marshal`, which never leave the process: a fraction of the memory that the lists of a polygon take,
    # and workers that fork share them. As JSON they would take eight times as long to make and to read.
    _annotations: Mapping[Id, bytes]

    def image(self, stem: str) -> CocoImage:
        """The record of a sample."""
        if stem not in self.images:
            raise ValueError(f"{self.path}: holds no image of the name {stem!r} among its {len(self.images)} images.")
        return self.images[stem]

    def annotations(self, image: CocoImage) -> list[dict[str, Any]]:
        """The annotations of an image, in the order of the file."""
        packed = self._annotations.get(image.id)
        return marshal.loads(packed) if packed is not None else []


def find_coco(root: str | Path) -> Path:
    """The instance file that a root means: itself, or in a folder `annotations.json`, or the only JSON file there.

    The file need not be there.

    Raises:
        ValueError: no such folder, or several files of which none is named so.
    """
    root, path = Path(root), written_coco(root)
    if path.exists() or not root.is_dir():
        return path
    found = _json_files(root, file_stamp(root))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:_SHOWN])
        raise ValueError(f"{root}: holds {len(found)} JSON files ({names}): name one of them instead of the folder.")
    return found[0] if found else path


def written_coco(root: str | Path) -> Path:
    """The instance file that is written for a root: itself, or `annotations.json` in it, whatever else lies there."""
    root = Path(root)
    is_file = root.is_file() or (root.suffix.lower() == SUFFIX and not root.is_dir())
    return root if is_file else root / DEFAULT_NAME


def load_coco(path: str | Path) -> CocoFile:
    """The indexed file; the last ones are kept, so that a file is read once per process.

    Raises:
        ValueError: names the file: no JSON, a list that is missing, records without what they need, ids that repeat,
            annotations of unknown images or categories, two images of one stem.
    """
    path = Path(path)
    return _load(path, file_stamp(path))


def write_coco(
    path: Path, head: Mapping[str, Any], images: Iterable[dict[str, Any]], annotations: Iterable[dict[str, Any]]
) -> None:
    """Write an instance file record by record, whole or not at all.

    Args:
        head: everything but the two lists; `categories` at least.
    """
    with writing_whole(path) as file:
        file.write(json.dumps(head)[:-1].encode())
        for key, listed in (("images", images), ("annotations", annotations)):
            file.write(f',\n"{key}": ['.encode())
            for number, record in enumerate(listed):
                file.write((",\n" if number else "\n").encode() + json.dumps(record).encode())
            file.write(b"\n]")
        file.write(b"}\n")


def stem_of(file_name: str) -> str:
    """Stem of an image: its path without suffix."""
    path = PurePosixPath(file_name)
    case = nifti_case_name(file_name)
    return str(path.with_name(case) if case is not None else path.with_suffix(""))


def file_name_of(stem: str, like: str | Path | None) -> str:
    """`file_name` of a sample whose image is the file `like`; `.png` where nobody says which."""
    if like is None:
        return f"{stem}.png"
    case = nifti_case_name(like)
    return stem + (Path(like).suffix if case is None else Path(like).name[len(case) :])


@lru_cache(maxsize=_CACHED_FILES)
def _json_files(folder: Path, stamp: tuple[str, int, int]) -> list[Path]:
    """Those right in the folder; kept, since a hundred thousand images may lie beside them."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == SUFFIX and is_shown(p.name) and p.is_file())


@lru_cache(maxsize=_CACHED_FILES)
def _load(path: Path, stamp: tuple[str, int, int]) -> CocoFile:
    values = read_json(path)
    categories = _categories(records(values, "categories", str(path)), path)
    images = _images(records(values, "images", str(path)), path)
    by_image: dict[Id, list[dict[str, Any]]] = defaultdict(list)
    known = {image.id for image in images.values()}
    ids: set[Any] = set()
    for number, record in enumerate(records(values, "annotations", str(path))):
        own, image, category = (record.get(key) for key in ("id", "image_id", "category_id"))
        where = f"{path}: annotation {own if own is not None else f'number {number}'}"
        if own is not None and (not _is_id(own) or own in ids):
            raise ValueError(f"{where}: has an id that is no number, or that another annotation has. Number them anew.")
        if not _is_id(image) or image not in known:
            raise ValueError(
                f"{where}: belongs to image {image!r}, which `images` does not hold. Add it or leave it out."
            )
        if not _is_id(category) or category not in categories:
            raise ValueError(f"{where}: is of category {category!r}, which `categories` does not hold. Add it there.")
        ids.add(own)
        by_image[image].append({key: record[key] for key in _KEPT if key in record})
    used = frozenset(record["category_id"] for listed in by_image.values() for record in listed)
    try:
        packed = {image: marshal.dumps(listed) for image, listed in by_image.items()}
    except ValueError:
        raise ValueError(f"{path}: is no annotation file: its lists are nested too deeply.") from None
    return CocoFile(path, images, categories, used, packed)


def _categories(listed: list[dict[str, Any]], path: Path) -> dict[Id, str]:
    categories: dict[Id, str] = {}
    for record in listed:
        own, name = record.get("id"), record.get("name")
        if not _is_id(own) or not isinstance(name, str) or not name:
            raise ValueError(f"{path}: category {record!s:.100}: expected an `id` and a `name`.")
        if own in categories:
            raise ValueError(f"{path}: two categories have the id {own!r} ({categories[own]} and {name}).")
        categories[own] = name
    return categories


def _images(listed: list[dict[str, Any]], path: Path) -> dict[str, CocoImage]:
    images: dict[str, CocoImage] = {}
    ids: set[Id] = set()
    for record in listed:
        own, name = record.get("id"), record.get("file_name")
        if not _is_id(own) or not isinstance(name, str) or not name:
            raise ValueError(f"{path}: image {record!s:.100}: expected an `id` and a `file_name`.")
        if own in ids:
            raise ValueError(f"{path}: two images have the id {own!r}, of which one is {name}. Number them anew.")
        try:
            stem = check_stem(stem_of(name))
        except ValueError as error:
            raise ValueError(f"{path}: image {own!r}, `file_name` {name!r}: {error}") from None
        if stem in images:
            raise ValueError(
                f"{path}: the images {images[stem].file_name} and {name} are both sample {stem!r}: keep one of them, "
                "or give them names that differ in more than the suffix."
            )
        ids.add(own)
        annotated = record.get(ANNOTATED) is True
        images[stem] = CocoImage(own, name, record.get("height"), record.get("width"), annotated)
    return dict(sorted(images.items()))


def _is_id(value: Any) -> TypeGuard[Id]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
