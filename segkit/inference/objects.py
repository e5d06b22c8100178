"""Objects in predicted masks: what hangs together in a class, as COCO JSON with box, area, run lengths and score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch

from segkit.formats.coco_files import ANNOTATED, write_coco
from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.formats.run_lengths import label_regions, to_json

# One of `RESERVED_NAMES`: never read as a mask of the folder that it lies in.
OBJECTS_NAME = "_objects.json"


def object_line(number: int, file_name: str, planes: np.ndarray, probs: np.ndarray, format: MaskFormat) -> bytes:
    """One line with the objects of an image, for `join_objects`.

    Args:
        number: of the image in the list of all; images are joined in this order.
        planes, probs: as for `find_objects`.
    """
    found = [[name, record] for name, record in find_objects(planes, probs, format)]
    height, width = planes.shape[:2]
    image = {"file_name": file_name, "width": width, "height": height, ANNOTATED: True}
    return json.dumps([number, image, found]).encode() + b"\n"


def join_objects(path: Path, files: Iterable[Path], format: MaskFormat) -> None:
    """Write the COCO file of all images that have lines in `files`, whole or not at all.

    Of several lines for one image the last counts: a batch that was interrupted is done again. Categories are the
    classes except `background`, numbered from 1 in their order. Memory holds a place for each image, no objects.
    """
    named = [name for name in format.names if name != BACKGROUND]
    numbers = {name: number for number, name in enumerate(named, start=1)}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        places = dict(sorted(_places(opened).items()))

        def entries() -> Iterator[tuple[int, dict[str, Any], list[Any]]]:
            for own, (file, start) in enumerate(places.values(), start=1):
                file.seek(start)
                _, image, found = json.loads(file.readline())
                yield own, image, found

        images = ({"id": own, **image} for own, image, _ in entries())
        objects = ((own, name, record) for own, _, found in entries() for name, record in found)
        annotations = (
            {"id": number, "image_id": own, "category_id": numbers[name], **record}
            for number, (own, name, record) in enumerate(objects, start=1)
        )
        write_coco(path, {"categories": categories}, images, annotations)


def _places(files: Iterable[BinaryIO]) -> dict[int, tuple[BinaryIO, int]]:
    """File and position of the last whole line of each image."""
    places = {}
    for file in files:
        start = 0
        for line in file:
            if line.endswith(b"\n"):  # not where a process was killed within it
                places[int(line[1 : line.index(b",")])] = (file, start)
            start += len(line)
    return places


def find_objects(planes: np.ndarray, probs: np.ndarray, format: MaskFormat) -> Iterator[tuple[str, dict[str, Any]]]:
    """(class name, object) of each connected region of each class but `background`; corners that touch connect.

    Args:
        planes: (H, W, P) of `format`.
        probs: (C, H, W) float in [0, 1].

    Returns:
        Objects with `bbox` [left, top, width, height], `area` in pixels, `segmentation` in compressed run lengths, and
        `score`, the mean probability of the class over the object.
    """
    target = torch.from_numpy(planes.transpose(2, 0, 1).astype(np.int32))[None]
    for name, held, prob in zip(format.names, format.expand(target)[0].numpy(), probs, strict=True):
        if name == BACKGROUND:
            continue
        count, labels = cv2.connectedComponents(held.view(np.uint8), connectivity=8)
        sums = np.bincount(labels.ravel(), weights=prob.ravel(), minlength=count)
        for region, total in zip(label_regions(labels, count - 1), sums[1:], strict=True):
            record = to_json(region)
            yield name, {**record, "iscrowd": 0, "score": round(float(total) / record["area"], 6)}
