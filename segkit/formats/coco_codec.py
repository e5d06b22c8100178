"""COCO instance JSON: polygons and run lengths of objects, which may overlap, in one file for all images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.class_labels import IGNORED, UNDECLARED
from segkit.formats.class_regions import one_of
from segkit.formats.coco_files import (
    ANNOTATED,
    CocoFile,
    CocoImage,
    Id,
    file_name_of,
    find_coco,
    load_coco,
    write_coco,
    written_coco,
)
from segkit.formats.files import PARTS, check_stem, existing, remove_empty, write_whole
from segkit.formats.json_files import declared_size, read_json
from segkit.formats.marks import Mark, MarkCodec, paint, paint_nothing, split_marks
from segkit.formats.mask_format import MaskFormat
from segkit.formats.run_lengths import Region, polygons_region, runs_region, to_json
from segkit.suggest import closest

CROWD = ("class", "ignore")
_IGNORED_NAME = "ignored"
_WAY_OUT = "Give the codec `crowd: ignore`"


class CocoJson(MarkCodec):
    """Objects of categories in a JSON file as COCO has it; the objects of a class together are its region.

    The root is the file, or a folder that holds `annotations.json` or one other JSON file. Samples are its images: a
    stem is `file_name` without suffix. `write` keeps single images, `finish` joins them into the file, with one
    annotation (compressed run lengths) for each class that is there.

    Args:
        values: name or id of a category -> class name, see `ClassLabels`; by default classes are named as categories.
        ignored_values: names or ids of categories that mean "do not look here".
        others: what a category stands for that is not named, see `ClassLabels`.
        crowd: what an annotation with `iscrowd` says: that the class is there, as any other (`class`), or that nobody
            knows where in it the class is (`ignore`). With `ignore`, pixels that are ignored for some of the classes
            are written as such regions.
        missing: what an image without annotations says: `error`, nothing (`ignore`), or that no class is there
            (`empty`). Images that segkit wrote are marked by `"annotated": true` and are taken at their word.
        overlap, unmarked: for exclusive classes, see `ClassRegions`.
    """

    name = "coco"

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[Any, str | None] | None = None,
        ignored_values: Iterable[Any] = (),
        others: str = "error",
        crowd: str = "class",
        missing: str = "error",
        overlap: str = "error",
        unmarked: str = "error",
    ) -> None:
        super().__init__(format, values, ignored_values, others, missing, overlap, unmarked)
        self.crowd = one_of(crowd, CROWD, "crowd")

    def to_spec(self) -> dict[str, Any]:
        spec = super().to_spec()
        return spec if self.crowd == "class" else {**spec, "crowd": self.crowd}

    def stems(self, root: str | Path) -> list[str]:
        path = find_coco(root)
        if not path.exists() and not Path(root).is_dir():
            raise ValueError(f"{root}: no such folder, nor a JSON file.")
        return list(load_coco(path).images) if path.exists() else []

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        path = find_coco(root)
        if not path.exists():
            raise ValueError(f"{path}, image {check_stem(stem)!r}: no such file.")
        file = load_coco(path)
        targets = self._targets(file)
        image = file.image(check_stem(stem))
        where = f"{path}, image {image.file_name}"
        size_hw = declared_size(image.height, image.width, where)
        annotations = file.annotations(image)
        if not annotations and not image.annotated:
            return paint_nothing(self.regions, size_hw, self.missing, where)
        marks = []
        for number, annotation in enumerate(annotations):
            target = targets[annotation["category_id"]]
            if target is not None:
                certain = self.crowd == "class" or not annotation.get("iscrowd")
                own = f"annotation {annotation.get('id', f'number {number}')}"
                marks.append(Mark(target, _region_of(annotation, size_hw, f"{where}, {own}"), certain))
        return paint(self.regions, size_hw, marks, where)

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([find_coco(root)])

    def holds(self, root: str | Path, stem: str) -> bool:
        path = written_coco(root)
        part = _parts(path) / f"{check_stem(stem)}.json"
        return part.is_file() or (path.exists() and stem in load_coco(path).images)

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        """Keep the annotations of one image for `finish`.

        Args:
            like: the image, whose suffix goes into `file_name`.
        """
        path = written_coco(root)
        where = f"{path}, image {check_stem(stem)!r}"
        height, width = self.check(planes, where).shape[:2]
        marks = list(split_marks(self.regions, self.labels, planes, where, self.crowd == "ignore", _WAY_OUT))
        part = {
            "image": {"file_name": file_name_of(stem, like), "height": height, "width": width, ANNOTATED: True},
            "annotations": [{"class": m.target, **to_json(m.region), "iscrowd": int(not m.certain)} for m in marks],
        }
        write_whole(_parts(path) / f"{stem}.json", json.dumps(part).encode())

    def finish(self, root: str | Path) -> None:
        """Join the images that were written into the file, in place of what it said of them; one process does this."""
        path = written_coco(root)
        folder = _parts(path)
        files = [p for p in sorted(folder.rglob("*.json")) if p.is_file()]  # a folder may be named so too
        parts = {p.relative_to(folder).as_posix()[: -len(".json")]: p for p in files}
        if parts:
            self._join(path, parts)
        # All at once: a process that is killed while it removes them would join the others again, after the first.
        joined = folder.with_name(f".{folder.name}.joined")
        shutil.rmtree(joined, ignore_errors=True)
        if folder.is_dir():
            folder.rename(joined)
            shutil.rmtree(joined)
        remove_empty(folder.parent)

    def _join(self, path: Path, parts: Mapping[str, Path]) -> None:
        known: Mapping[str, CocoImage] = {}
        values: dict[str, Any] = {"categories": [], "images": [], "annotations": []}
        if path.exists():
            known, values = load_coco(path).images, read_json(path)
        head = {key: value for key, value in values.items() if key not in ("images", "annotations")}
        categories = self._add_categories(head["categories"])
        first_image = _next_id(values["images"])
        new = [stem for stem in parts if stem not in known]
        ids: dict[str, Id] = {stem: known[stem].id for stem in parts if stem in known}
        ids |= {stem: number for number, stem in enumerate(new, start=first_image)}
        stems = {image.id: stem for stem, image in known.items()}
        written = set(ids.values())
        kept = [record for record in values["annotations"] if record["image_id"] not in written]

        def images() -> Iterator[dict[str, Any]]:
            for record in values["images"]:
                stem = stems[record["id"]]
                if stem in parts:  # its name and whatever else the file says of it stay
                    record = {**record, **read_json(parts[stem])["image"], "file_name": record["file_name"]}
                yield record
            for stem in new:
                yield {"id": ids[stem], **read_json(parts[stem])["image"]}

        def annotations() -> Iterator[dict[str, Any]]:
            yield from kept
            # Not behind those that are replaced: joined twice, the same parts are the same file.
            number = _next_id(kept)
            for stem, part in parts.items():
                for record in read_json(part)["annotations"]:
                    category = categories[record.pop("class")]
                    yield {"id": number, "image_id": ids[stem], "category_id": category, **record}
                    number += 1

        write_coco(path, head, images(), annotations())

    def _add_categories(self, listed: list[dict[str, Any]]) -> dict[int, Id]:
        """Id of the category that is written for each class and for `IGNORED`; missing ones are added."""
        ids: dict[int, Id] = {}
        targets = [*self.regions.classes, *([IGNORED] if self.labels.ignored_values else [])]
        labels = {target: self.labels.written(target) for target in targets}
        names = {IGNORED: _IGNORED_NAME, **dict(enumerate(self.format.names))}
        # A label that is a number, and not the name of its class, is the id of a category.
        numbers = {target: int(text) for target, text in labels.items() if text.isdecimal() and text != names[target]}
        free = max(_next_id(listed), 1 + max(numbers.values(), default=0))
        for target, label in labels.items():
            fitting = [record for record in listed if self._target(record["name"], record["id"]) == target]
            found = [record["id"] for key in ("name", "id") for record in fitting if str(record[key]) == label]
            if found:
                ids[target] = found[0]
                continue
            number, name = numbers.get(target), names[target]
            if number is None:
                number, free = free, free + 1
                name = label
            elif self._target(name, number) != target:
                name = label  # its own name stands for another class
            listed.append({"id": number, "name": name})
            ids[target] = number
        return ids

    def _target(self, name: str, number: Id) -> int | None:
        """What a category stands for."""
        try:
            return self.labels.target(name, number)
        except KeyError:
            return UNDECLARED

    def _targets(self, file: CocoFile) -> dict[Id, int | None]:
        """What each category stands for."""
        targets = {number: self._target(name, number) for number, name in file.categories.items()}
        strange = [file.categories[number] for number in file.used if targets[number] == UNDECLARED]
        if strange:
            raise ValueError(f"{file.path}: {self.labels.strange_text(strange)}")
        lost = [self.format.names[index] for index in self.regions.classes if index not in targets.values()]
        if lost:
            raise ValueError(
                f"{file.path}: no category stands for class {lost[0]!r}. {closest(lost[0], file.categories.values())} "
                "Name the category in `values`, such as {CATEGORY: CLASS}."
            )
        return targets


def _parts(path: Path) -> Path:
    return path.parent / PARTS / path.name


def _region_of(annotation: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> Region:
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return runs_region(segmentation, size_hw)
        return polygons_region(segmentation, size_hw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}. Correct it, or leave the image out with `quarantine`.") from None


def _next_id(listed: list[dict[str, Any]]) -> int:
    return 1 + max((record["id"] for record in listed if isinstance(record.get("id"), int)), default=0)
