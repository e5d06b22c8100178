"""Small files for miniatures of data sets, and the way a user opens such a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segkit.config import Experiment, read_config
from segkit.data.datasets import MaskDataset
from segkit.data.sets.layout import PART_NAMES
from segkit.parts import Parts, open_masks, open_parts

SIZE_HW = (4, 6)


def write_image(path: Path, value: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> None:
    """One gray value, which tells images apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), value, np.uint8))


def write_values(path: Path, rows: list[list[int]]) -> None:
    """A gray picture of these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.array(rows, np.uint8))


def write_volume(path: Path, array: np.ndarray) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 2, 3, 1])), path)


def read_layout(root: Path, layout: str, masks: dict[str, Any] | None = None, **parts: Any) -> Experiment:
    """The config that a user writes: `data: {root: ..., layout: ..., train: {}}`, with parts as given."""
    return _read(Path(f"{root}.yaml"), root, layout, masks, parts or {"train": {}})


def _read(path: Path, root: Path, layout: str, masks: dict[str, Any] | None, parts: dict[str, Any]) -> Experiment:
    data = {"root": str(root), "layout": layout, **parts}
    config = {"data": data} if masks is None else {"masks": masks, "data": data}
    path.write_text(json.dumps(config))  # JSON is YAML
    return read_config(path)


def open_set(root: Path, layout: str, masks: dict[str, Any] | None = None, **parts: Any) -> Parts:
    """The parts of a data set, opened through its config."""
    return _open(read_layout(root, layout, masks, **parts))


def open_shared(
    folder: Path,
    root: Path,
    layout: str,
    masks: dict[str, Any] | None = None,
    verify: tuple[str, ...] = PART_NAMES,
    **parts: Any,
) -> Parts:
    """`open_set` for a root that nothing may be written beside; the config is written into `folder`."""
    return _open(_read(folder / "config.yaml", root, layout, masks, parts or {"train": {}}), verify)


def _open(config: Experiment, verify: tuple[str, ...] = PART_NAMES) -> Parts:
    opened = open_parts(config, open_masks(config))
    for name in verify:
        if getattr(opened, name) is not None:
            getattr(opened, name).verify(workers=1)
    return opened


def stems_and_values(data: MaskDataset) -> dict[str, int]:
    """Stem -> the value that `write_image` wrote."""
    return {stem: int(data.read(i).image[0, 0, 0]) for i, stem in enumerate(data.stems)}


def planes_of(data: MaskDataset, index: int = 0) -> list:
    """Nested lists of (H, W) for one plane, (H, W, P) for several."""
    planes = data.read(index).planes
    return (planes[..., 0] if planes.shape[2] == 1 else planes).tolist()
