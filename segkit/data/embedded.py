"""Two small data sets that need no download: a drawn street scene, and slices of the MNI152 brain template.

Both are written as `{train,val,test}/{images,masks}/STEM.png`, masks as index PNG.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

SCENE_CLASSES = ("sky", "ground", "building", "ball")
MNI152_CLASSES = ("background", "gray_matter", "white_matter")
# In the masks of the scene: nobody says what is there.
SCENE_IGNORED = 255

_SCENE_COUNTS = {"train": 24, "val": 8, "test": 8}
_SCENE_SIZE_HW = (64, 96)

# Slices of 1 mm from below the temporal lobes to the crown, in order. Neighbouring slices look alike, so parts are
# blocks, and 3 mm between blocks belong to none.
_MNI152_FIRST = 14
_MNI152_GAP = 3
_MNI152_BLOCKS = (
    ("train", 11),
    ("test", 8),
    ("train", 10),
    ("val", 7),
    ("train", 11),
    ("test", 8),
    ("train", 11),
    ("val", 7),
    ("train", 11),
    ("test", 8),
    ("train", 10),
)

_SCENE_README = """# Drawn street scene

40 pictures drawn by segkit from random numbers: 24 for training, 8 for validation, 8 for testing, 64 x 96 pixels.
Mask values: 0 sky, 1 ground, 2 building, 3 ball, 255 not known (rims of balls, and a patch here and there).
"""
_MNI152_README = """# Slices of the MNI152 brain template

Axial slices of the ICBM 152 (2009a nonlinear symmetric) averaged T1 image, 1 mm, front of the head at the top. The
number in a name is the slice of the volume. Mask values: 0 background, 1 gray_matter, 2 white_matter, where the
probability map of the template says 0.5 or more; the larger of the two wins. An average head, not one person.

Written by segkit from the files in the Python package nilearn. Copyright (C) 1993-2004 Louis Collins, McConnell Brain
Imaging Centre, Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and distribute is
granted without fee provided this notice is kept; there is no warranty. Please cite Fonov et al., NeuroImage 2011.
"""


def write_scene(root: str | Path, seed: int = 0) -> Path:
    """Write the drawn street scene as folder `root`, unless it is there; returns `root`.

    Raises:
        ValueError: `root` holds something else.
    """

    def fill(folder: Path) -> None:
        for number, (part, count) in enumerate(_SCENE_COUNTS.items()):
            for index in range(count):
                image, mask = _draw_scene(np.random.default_rng([seed, number, index]))
                _write_pair(folder / part, f"scene_{index:02d}", image, mask)

    return _write_once(Path(root), fill, _SCENE_README)


def write_mni152(root: str | Path) -> Path:
    """Write axial slices of the MNI152 template as folder `root`, unless they are there; returns `root`.

    Raises:
        ValueError: nilearn, whose package holds the volumes, is not installed, or `root` holds something else.
    """

    def fill(folder: Path) -> None:
        t1, gray, white = (_mni152_volume(name) for name in ("t1", "gm", "wm"))
        for part, z in mni152_slices():
            levels = np.stack([np.full(t1.shape[:2], 127, np.uint8), gray[..., z], white[..., z]])
            # argmax takes the first of equals: 127 of 255 stands for "neither reaches 0.5".
            mask = levels.argmax(0).astype(np.uint8)
            # x runs to the right of the head and y to its front; rows of a picture run downwards.
            image, mask = (np.ascontiguousarray(a[:, ::-1].T) for a in (t1[..., z], mask))
            _write_pair(folder / part, f"mni152_z{z:03d}", image, mask)

    return _write_once(Path(root), fill, _MNI152_README)


def mni152_slices() -> list[tuple[str, int]]:
    """(part, number of the slice) of all that are used."""
    slices, z = [], _MNI152_FIRST
    for part, count in _MNI152_BLOCKS:
        slices += [(part, z + i) for i in range(count)]
        z += count + _MNI152_GAP
    return slices


def _write_once(root: Path, fill: Callable[[Path], None], readme: str) -> Path:
    """Make folder `root` whole or not at all; of several processes one wins and the others use its work."""
    title = readme.splitlines()[0]
    if _is_complete(root, title):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"{root}: holds other things than {title.removeprefix('# ')!r}, a set known by the first line of its "
            "README.md. Give a folder of its own, which is new or empty, as `data.root`; the layout of your own "
            "images is `folders`."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        fill(made)
        (made / "README.md").write_text(readme, encoding="utf-8")
        # mkdtemp makes a folder for the owner alone; a data set is for all who share the disk.
        made.chmod(0o777 & ~_umask())
        try:
            os.replace(made, root)
        except OSError:
            if not _is_complete(root, title):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return root


def _is_complete(root: Path, title: str) -> bool:
    """Whether `root` is the set whose README begins with `title`; any data set may have such folders."""
    try:
        with open(root / "README.md", encoding="utf-8", errors="replace") as file:
            if file.readline().strip() != title:
                return False
    except OSError:
        return False
    # The folder appears by one rename, so any part of it stands for the whole.
    return all((root / part / kind).is_dir() for part in _SCENE_COUNTS for kind in ("images", "masks"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_pair(folder: Path, stem: str, image: np.ndarray, mask: np.ndarray) -> None:
    """One RGB or gray image and its mask as PNG."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    for kind, array in (("images", image), ("masks", mask)):
        path = folder / kind / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def _draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 picture and (H, W) uint8 mask."""
    height, width = _SCENE_SIZE_HW
    image = np.zeros((height, width, 3), np.float32)
    mask = np.zeros((height, width), np.uint8)
    horizon = int(rng.integers(height // 2, height * 2 // 3))
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image[:] = np.array([100, 150, 220], np.float32) + rows * rng.uniform(20, 60)
    for _ in range(int(rng.integers(2, 5))):
        _draw_building(image, mask, horizon, rng)
    ground = np.array([1.0, 0.95, 0.85], np.float32) * rng.uniform(80, 130)
    image[horizon:] = ground * (0.6 + 0.4 * rows[horizon:])
    mask[horizon:] = SCENE_CLASSES.index("ground")
    for _ in range(int(rng.integers(1, 4))):
        _draw_ball(image, mask, horizon, rng)
    if rng.random() < 0.5:
        top, left = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 12))
        mask[top : top + 8, left : left + 12] = SCENE_IGNORED
    coarse = rng.normal(0, 10, (height // 8, width // 8, 3)).astype(np.float32)
    image += cv2.resize(coarse, (width, height)) + rng.normal(0, 8, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _draw_building(image: np.ndarray, mask: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    left, wide = int(rng.integers(0, image.shape[1] - 12)), int(rng.integers(10, 30))
    top = int(rng.integers(6, horizon - 8))
    wall = rng.uniform((90, 60, 50), (190, 150, 130)).astype(np.float32)
    image[top:horizon, left : left + wide] = wall
    for y in range(top + 3, horizon - 3, 6):
        for x in range(left + 2, min(left + wide, image.shape[1]) - 3, 5):
            image[y : y + 3, x : x + 2] = wall * 0.4 if rng.random() < 0.7 else (230, 220, 120)
    mask[top:horizon, left : left + wide] = SCENE_CLASSES.index("building")


def _draw_ball(image: np.ndarray, mask: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    radius = float(rng.uniform(4, 10))
    x, y = rng.uniform(radius, image.shape[1] - radius), rng.uniform(horizon, image.shape[0] - radius / 2)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    distance = np.hypot(rows - y, columns - x) / radius
    light = 1.15 - 0.5 * np.hypot(rows - y + radius / 3, columns - x + radius / 3) / radius
    colour = rng.permutation(np.array([220, 60, 50], np.float32))
    inside = distance <= 1
    image[inside] = (light[..., None] * colour)[inside]
    mask[inside] = SCENE_CLASSES.index("ball")
    mask[np.abs(distance - 1) * radius < 0.5] = SCENE_IGNORED


def _mni152_volume(name: str) -> np.ndarray:
    """(x, y, z) uint8 volume that nilearn ships: t1, gm or wm."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the MNI152 brain template comes with the Python package nilearn, which is not installed: "
            "pip install 'segkit[demo]'"
        )
    from segkit.formats.volumes import load_volume

    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise ValueError(f"{path}: not in the installed nilearn. Install another release: pip install 'segkit[demo]'")
    array = load_volume(path).array
    if array.dtype != np.uint8 or array.shape != (197, 233, 189):
        raise ValueError(f"{path}: is {array.dtype} of shape {array.shape}, expected uint8 of 197 x 233 x 189.")
    return array
