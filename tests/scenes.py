"""Small data sets that tests draw: one per mask format, with their codec."""

from __future__ import annotations

from pathlib import Path

import cv2
import nibabel
import numpy as np

from segkit.data.datasets import MaskDataset
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat

FORMATS: dict[str, MaskFormat] = {
    "exclusive": MaskFormat.multiclass(["sky", "ground", "disc"]),
    "one_vs_rest": MaskFormat.multiclass(["sky", "ground", "disc"], "sigmoid"),
    "overlapping": MaskFormat.multilabel(["left", "disc"]),
    "binary": MaskFormat.binary("disc"),
    "binary_softmax": MaskFormat.binary("disc", "softmax"),
}


def scene(number: int, size_hw: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(H, W, 3) uint8 image, and (H, W) bool maps by name: sky over ground, a disc, and the left third."""
    rng = np.random.default_rng(number)
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    horizon = height * rng.uniform(0.35, 0.65)
    y, x = rng.uniform(0.3, 0.7, 2) * size_hw
    disc = (rows - y) ** 2 + (columns - x) ** 2 < (min(size_hw) * 0.25) ** 2
    sky = (rows < horizon) & ~disc
    maps = {"sky": sky, "ground": ~sky & ~disc, "disc": disc, "left": columns < width // 3}
    image = np.where(sky[..., None], (90, 140, 220), (120, 100, 60)).astype(np.float32)
    image[disc] = (230, 40, 40)
    image[maps["left"]] *= 0.5
    image += rng.normal(0, 8, image.shape)
    return image.clip(0, 255).astype(np.uint8), maps


def planes_of(format: MaskFormat, maps: dict[str, np.ndarray]) -> np.ndarray:
    """(H, W, P) planes of `format` that say what `maps` say."""
    if format.num_planes == format.num_classes:
        return np.stack([maps[name] for name in format.names], axis=2).astype(format.dtype)
    plane = np.zeros(next(iter(maps.values())).shape, format.dtype)
    for index, name in enumerate(format.names):
        if name in maps:
            plane[maps[name]] = index
    return plane[..., None]


def default_codec(format: MaskFormat, ignored: int | None = None) -> Codec:
    """The codec a user would take: one file per class where classes overlap, else index PNG."""
    if format.num_planes > 1:
        return open_codec("file_per_class", format)
    return open_codec({"name": "index_png", "ignored_values": [] if ignored is None else [ignored]}, format)


def write_set(
    root: Path,
    format: MaskFormat,
    count: int = 6,
    size_hw: tuple[int, int] = (40, 56),
    codec: Codec | None = None,
    first: int = 0,
) -> MaskDataset:
    """`root`/images and `root`/masks with `count` scenes, of which number `first` is called s0."""
    codec = codec or default_codec(format)
    (root / "images").mkdir(parents=True)
    scenes = [scene(first + number, size_hw) for number in range(count)]
    volume = root / "images" / "case.nii.gz" if codec.name == "nifti" else None
    if volume is not None:
        # One slice per scene, voxels (x, y, z): columns, rows, number of the scene.
        voxels = np.stack([image.mean(2).T for image, _ in scenes], axis=2).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.7, 2.0, 1.0])), volume)
    for number, (image, maps) in enumerate(scenes):
        stem = f"s{number}" if volume is None else f"case@z{number:03d}"
        if volume is None:
            cv2.imwrite(str(root / "images" / f"{stem}.png"), image[..., ::-1])
        codec.write(root / "masks", stem, planes_of(format, maps), like=volume)
    codec.finish(root / "masks")
    return MaskDataset(root / "images", root / "masks", codec)
