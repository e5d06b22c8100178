"""Small data sets that tests draw: masks from rows of numbers, images of their size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from segkit.formats.png_files import write_png
from segkit.inspection.parts import Source, find_source
from segkit.inspection.run import Inspection, inspect


def write_image(path: Path, size_hw: tuple[int, int], seed: int = 0, gray: bool = False) -> None:
    """Smooth colours, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 1 if gray else 3), dtype=np.uint8)
    image = cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), image)


def write_masks(root: Path, masks: Mapping[str, np.ndarray], part: str = "", palette: np.ndarray | None = None) -> Path:
    """`root`/PART/images and masks; returns `root`."""
    for seed, (stem, mask) in enumerate(masks.items()):
        write_png(root / part / "masks" / f"{stem}.png", mask, palette)
        write_image(root / part / "images" / f"{stem}.jpg", mask.shape[:2], seed + 100 * len(part))
    return root


def write_class_files(root: Path, planes: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """`root`/images and masks/CLASS/STEM.png from class -> stem -> (H, W) bool."""
    for name, masks in planes.items():
        for seed, (stem, marks) in enumerate(masks.items()):
            write_png(root / "masks" / name / f"{stem}.png", marks.astype(np.uint8) * 255)
            write_image(root / "images" / f"{stem}.jpg", marks.shape, seed)
    return root


def look(root: Path, classes=None, **where) -> Inspection:
    source: Source = find_source(root, **where)
    return inspect(source, classes)


def blocks(values: list[int], size_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Vertical stripes of equal width, one for each value; the last takes what is left."""
    mask = np.full(size_hw, values[-1], np.uint8)
    width = size_hw[1] // len(values)
    for number, value in enumerate(values):
        mask[:, number * width : (number + 1) * width if number + 1 < len(values) else None] = value
    return mask
