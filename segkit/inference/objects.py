"""Objects in predicted masks: what hangs together in a class, as COCO JSON with box, area, run lengths and score."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def collect_objects(folder: Path, format: MaskFormat) -> Iterator[Objects]:
    """Objects of images, which are written to `_objects.json` in `folder` at the end, whole or not at all."""
    # Without a name, and gone with this process.
    with tempfile.TemporaryFile("w+b", dir=folder) as lines:
        objects = Objects(format, lines)
        yield objects
        objects.write(folder / OBJECTS_NAME)


class Objects:
    """Collects the objects of images one by one; memory does not grow with their number.

    Categories are the classes except `background`, numbered from 1 in their order.

    Args:
        format: what the planes mean.
        lines: takes one line for each image.
    """

    def __init__(self, format: MaskFormat, lines: BinaryIO) -> None:
        self._format, self._lines = format, lines
        named = [name for name in format.names if name != BACKGROUND]
        self._categories = {name: number for number, name in enumerate(named, start=1)}

    def add(self, file_name: str, planes: np.ndarray, probs: np.ndarray) -> None:
        """The objects of one image; arguments as for `find_objects`."""
        found = [
            {"category_id": self._categories[name], **record}
            for name, record in find_objects(planes, probs, self._format)
        ]
        height, width = planes.shape[:2]
        image = {"file_name": file_name, "width": width, "height": height, ANNOTATED: True}
        self._lines.write(json.dumps([image, found]).encode() + b"\n")

    def write(self, path: Path) -> None:
        """Write the COCO file of all images that were added, whole or not at all."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        write_coco(path, {"categories": categories}, self._images(), self._annotations())

    def _images(self) -> Iterator[dict[str, Any]]:
        for number, (image, _) in enumerate(self._entries(), start=1):
            yield {"id": number, **image}

    def _annotations(self) -> Iterator[dict[str, Any]]:
        own = 0
        for number, (_, found) in enumerate(self._entries(), start=1):
            for record in found:
                own += 1
                yield {"id": own, "image_id": number, **record}

    def _entries(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        self._lines.seek(0)
        for line in self._lines:
            image, found = json.loads(line)
            yield image, found


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
