"""From files to training samples, bytes to the device, and geometry on many overlapping masks.

One worker's work on one core: that is what a data loader multiplies by its workers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Absent, peer
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit import MaskDataset, MaskFormat, build_augment, open_codec
from segkit.data.loaders import collate
from segkit.data.warp import Move, move_planes

_CLASSES = 19
_ALBUMENTATIONS = "albumentations + OpenCV"
_PLANES = "OpenCV on (H, W, C) uint8"
_IGNORED = 255
_MIB = 2**20


@dataclass(frozen=True)
class _Shape:
    """Sizes of the files, how many there are, and the crop."""

    images: int
    size_hw: tuple[int, int]
    crop: int

    @staticmethod
    def of(settings: Settings) -> _Shape:
        return _Shape(2, (48, 80), 32) if settings.small else _Shape(16, (512, 1024), 512)


def loader(settings: Settings) -> list[Row]:
    """JPEG and PNG to augmented crops: images/s of one worker, and bytes per sample to the device."""
    shape = _Shape.of(settings)
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        root = Path(folder)
        data = write_scenes(root, shape.images, shape.size_hw)

        def reading(source: MaskDataset, preset: str) -> Run:
            epochs = count()
            source.augment = build_augment(preset, source.format, crop=shape.crop)
            return lambda: _one_epoch(source, next(epochs))

        def cached() -> MaskDataset:
            return data.cached("disk", folder=root / "cache")

        contenders = [
            Contender(_ALBUMENTATIONS, lambda: _albumentations(root, data.stems, shape.crop), result=_sizes),
            Contender("segkit, street", lambda: reading(data.without_augment(), "street"), result=_sizes),
            Contender(
                "segkit, fast_street", lambda: reading(data.without_augment(), "fast_street"), Goal(1.7, True), _sizes
            ),
            Contender("segkit, fast_street, cached", lambda: reading(cached(), "fast_street"), Goal(8, True), _sizes),
        ]
        h, w = shape.size_hw
        title = f"{h}x{w} JPEG + PNG: decode, scale, crop {shape.crop}, flip, colour; one core"
        row = time_row("loader", title, _ALBUMENTATIONS, contenders, settings, images=shape.images)
        return [row, _decoding_row(root, data, shape, settings), _bytes_row(root, data, shape)]


def overlap_geometry(settings: Settings) -> list[Row]:
    """Scale, rotation and flip of many overlapping masks, as bits from the decoded cache."""
    return [_geometry(classes, limit, settings) for classes, limit in ((8, 0.27), (20, 0.13))]


def write_scenes(root: Path, number: int, size_hw: tuple[int, int]) -> MaskDataset:
    """JPEG images and PNG masks that compress as photographs of streets do; the codec ignores 255."""
    for part in ("images", "masks"):
        (root / part).mkdir()
    for index in range(number):
        noise = np.random.default_rng(index).normal(0, 6, (*size_hw, 3))
        image = (128 + 50 * _smooth_fields(3, size_hw, (9, 17), index) + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"{index:03d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        classes = _smooth_fields(_CLASSES, size_hw, (5, 9), index).argmax(-1).astype(np.uint8)
        cv2.imwrite(str(root / "masks" / f"{index:03d}.png"), classes)
    codec = open_codec({"name": "index_png", "ignored_values": [_IGNORED]}, MaskFormat.multiclass(range(_CLASSES)))
    return MaskDataset(root / "images", root / "masks", codec)


def _smooth_fields(number: int, size_hw: tuple[int, int], grid_hw: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W, number) float32 about 0, smooth between the points of a grid."""
    grid = np.random.default_rng([seed, number]).normal(0, 1, (*grid_hw, number)).astype(np.float32)
    planes = [cv2.resize(grid[..., k], size_hw[::-1], interpolation=cv2.INTER_CUBIC) for k in range(number)]
    return np.stack(planes, axis=-1)


# Reading ---------------------------------------------------------------------------------------------------


def _one_epoch(data: MaskDataset, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All samples; image and planes of the last."""
    for index in range(len(data)):
        sample = data[epoch, index]
    return sample.image, sample.planes


def _albumentations(root: Path, stems: Sequence[str], crop: int) -> Run:
    """The usual recipe, with the ranges of segkit's `street`."""
    compose = _street_recipe(crop)

    def run() -> tuple[np.ndarray, np.ndarray]:
        for stem in stems:
            image, mask = _read_pair(root, stem)
            changed = compose(image=image, mask=mask)
        return changed["image"], changed["mask"]

    return run


def _street_recipe(crop: int, *last: Any) -> Callable[..., dict[str, Any]]:
    A = _import_albumentations()
    return A.Compose(
        [
            A.RandomScale(scale_limit=(-0.5, 1.0), p=1.0),
            A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_REFLECT_101),
            A.RandomCrop(crop, crop),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.5),
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=30, val_shift_limit=0, p=0.3),
            *last,
        ],
        seed=0,
    )


def _read_pair(root: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.cvtColor(cv2.imread(str(root / "images" / f"{stem}.jpg")), cv2.COLOR_BGR2RGB)
    return image, cv2.imread(str(root / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)


def _import_albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version otherwise
    return peer("albumentations", "albumentations")


def _sizes(returned: tuple[np.ndarray, np.ndarray]) -> list[Tensor]:
    """Height, width and bands: random crops can be compared in nothing else."""
    image, planes = returned
    return [torch.tensor([*image.shape, image.itemsize, *planes.shape[:2]])]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _decoding_row(root: Path, data: MaskDataset, shape: _Shape, settings: Settings) -> Row:
    """What no augmentation can be faster than; decoders may round colours differently."""

    def ours() -> tuple[np.ndarray, np.ndarray]:
        for index in range(len(data)):
            sample = data.read(index)
        return sample.image, sample.planes[..., 0]

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        for stem in data.stems:
            pair = _read_pair(root, stem)
        return pair

    contenders = [
        Contender("OpenCV", lambda: theirs, result=_tensors),
        Contender("segkit", lambda: ours, result=_tensors),
    ]
    h, w = shape.size_hw
    title = f"{h}x{w} JPEG + PNG: decoding alone; one core"
    return time_row("loader", title, "OpenCV", contenders, settings, images=shape.images, tolerance=0.02)


# Bytes -----------------------------------------------------------------------------------------------------


def _bytes_row(root: Path, data: MaskDataset, shape: _Shape) -> Row:
    ours = Entry("segkit", goal=Goal(1.0))
    plain = data.without_augment()
    plain.augment = build_augment("street", data.format, crop=shape.crop)
    batch = collate([plain[0, index] for index in range(len(plain))])
    ours.samples.append((batch.images.nbytes + batch.target.nbytes) / len(batch) / _MIB)
    theirs = Entry("albumentations, Normalize, ToTensorV2, mask.long()")
    try:
        theirs.samples.append(_albumentations_bytes(root, data.stems[0], shape.crop) / _MIB)
    except Absent as reason:
        theirs.absent = str(reason)
    title = f"bytes per {shape.crop}x{shape.crop} sample to the device"
    return Row("loader", title, "MiB", [theirs, ours]).relate()


def _albumentations_bytes(root: Path, stem: str, crop: int) -> int:
    A = _import_albumentations()
    to_tensor = peer("albumentations", "albumentations.pytorch").ToTensorV2()
    image, mask = _read_pair(root, stem)
    changed = _street_recipe(crop, A.Normalize(), to_tensor)(image=image, mask=mask)
    return changed["image"].nbytes + changed["mask"].long().nbytes


# Geometry --------------------------------------------------------------------------------------------------


def _geometry(classes: int, limit: float, settings: Settings) -> Row:
    """The same moves of the same masks; results must be equal, bit for bit."""
    side, number = (48, 2) if settings.small else (512, 4)
    moves = _moves(side, number)
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        data = _write_overlapping(Path(folder), number, classes, side)
        plain = [data.read(index).planes for index in range(number)]
        cached = data.cached("disk", folder=Path(folder) / "cache")

        def segkit(read: Callable[[int], Any]) -> Run:
            return lambda: [move_planes(read(index), move, _IGNORED) for index, move in enumerate(moves)]

        contenders = [
            Contender(_PLANES, lambda: lambda: list(map(_warp_planes, plain, moves)), result=_tensors),
            Contender("segkit, planes in memory", lambda: segkit(plain.__getitem__), result=_tensors),
            Contender(
                "segkit, packed, from the cache",
                lambda: segkit(lambda index: cached.read(index).stored_planes),
                Goal(limit),
                _tensors,
            ),
        ]
        title = f"scale, rotation and flip of {classes} overlapping masks, {number} of {side}x{side}; one core"
        return time_row("overlap-geometry", title, _PLANES, contenders, settings, tolerance=0.0)


def _moves(side: int, number: int) -> list[Move]:
    """Rotations, growths and flips as `fast_medical` draws them; corners reach beyond the border."""
    random = np.random.default_rng(0)
    return [
        Move(
            corner=(0, 0),
            window_hw=(side, side),
            size_hw=(side, side),
            flip_x=bool(random.random() < 0.5),
            angle_deg=random.uniform(-25, 25),
            scale_xy=(random.uniform(0.8, 1.25), random.uniform(0.8, 1.25)),
        )
        for _ in range(number)
    ]


def _warp_planes(planes: np.ndarray, move: Move) -> np.ndarray:
    """OpenCV on (H, W, C) uint8, four channels at a time, which is all it warps at once; so does albumentations."""
    height, width, channels = planes.shape
    options: dict[str, Any] = {
        "flags": cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        "borderMode": cv2.BORDER_CONSTANT,
        "borderValue": (_IGNORED,) * 4,
    }
    warped = np.empty_like(planes)
    for start in range(0, channels, 4):
        part = np.ascontiguousarray(planes[..., start : start + 4])
        warped[..., start : start + 4] = cv2.warpAffine(part, move.to_source(), (width, height), **options)
    return warped


def _write_overlapping(root: Path, number: int, classes: int, side: int) -> MaskDataset:
    """Images of one colour, with one mask per class."""
    codec = open_codec("file_per_class", MaskFormat.multilabel([f"c{k}" for k in range(classes)]))
    (root / "images").mkdir()
    for index in range(number):
        cv2.imwrite(str(root / "images" / f"{index}.png"), np.full((side, side, 3), 128, np.uint8))
        planes = (_smooth_fields(classes, (side, side), (9, 9), index) > 0.5).astype(np.uint8)
        codec.write(root / "masks", str(index), planes)
    return MaskDataset(root / "images", root / "masks", codec)


def _tensors(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
