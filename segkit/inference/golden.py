"""Golden images: a few pictures with the masks that a model gave them, by which copies of the model are checked.

A bundle keeps some of the validation images, cut small, and an exported file carries its own. They tell whether another
version of torch, another device or another program gives the same masks.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.data.datasets import MaskDataset
from segkit.formats.files import write_whole
from segkit.formats.mask_format import MaskFormat
from segkit.models.bundle_files import find_bundle, installed_versions
from segkit.models.segmenter import Segmenter
from segkit.ops.upsample import CoarseLogits

GOLDEN = "golden.safetensors"
# Of images and masks together: a bundle stays as easy to send as its weights are.
_BYTES = 1_000_000
_LARGEST_SIDE = 256


class GivesLogits(Protocol):
    """What masks are asked of: a part of `SegmentationModel`."""

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits: ...


@dataclass(frozen=True)
class GoldenImage:
    """One image and the planes that a model gave it.

    Attributes:
        image: (H, W, B) as the model's `reading` gives images.
        planes: (H, W, P), before post-processing.
        spacing_mm: (row, column) distances, where known.
    """

    image: np.ndarray
    planes: np.ndarray
    spacing_mm: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GoldenImages:
    """Golden images of one model.

    Attributes:
        format: by which the planes were decoded. Thresholds that were tuned later change masks, not the network.
        versions: what was installed then.
    """

    images: tuple[GoldenImage, ...]
    format: MaskFormat
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        from safetensors.numpy import save

        arrays = {}
        for number, golden in enumerate(self.images):
            arrays[f"image.{number}"] = np.ascontiguousarray(golden.image)
            arrays[f"planes.{number}"] = np.ascontiguousarray(golden.planes)
            if golden.spacing_mm is not None:
                arrays[f"spacing_mm.{number}"] = np.array(golden.spacing_mm, np.float64)
        return save(arrays, {"format": json.dumps(self.format.to_dict()), "versions": json.dumps(self.versions)})

    @staticmethod
    def from_bytes(content: bytes, name: str) -> GoldenImages:
        """What `to_bytes` wrote.

        Args:
            name: of the file, for messages.

        Raises:
            ValueError: anything else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(content)
            length = int.from_bytes(content[:8], "little")
            notes = json.loads(content[8 : 8 + length])["__metadata__"]
            format = MaskFormat.from_dict(json.loads(notes["format"]))
            count = sum(key.startswith("image.") for key in arrays)
            images = tuple(
                GoldenImage(arrays[f"image.{n}"], arrays[f"planes.{n}"], _spacing(arrays.get(f"spacing_mm.{n}")))
                for n in range(count)
            )
            if not images:
                raise ValueError("there is none")
            return GoldenImages(images, format, json.loads(notes["versions"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: damaged, or no golden images of segkit: {error}") from error


def keep_golden(model: Segmenter, data: MaskDataset, bundle: Path, count: int) -> None:
    """Put golden images into the bundle of `model`: crops of at most 256 pixels a side, of samples spread over `data`.

    A copy of the model on the CPU predicts them, so that they do not depend on where it was trained.
    """
    golden = predict_golden(copy.deepcopy(model).cpu(), choose_images(data, count))
    write_whole(bundle / GOLDEN, golden.to_bytes())


def read_golden(path: str | Path) -> GoldenImages | None:
    """Those of a bundle or run folder; None where it has none."""
    file = find_bundle(Path(path)) / GOLDEN
    return GoldenImages.from_bytes(file.read_bytes(), str(file)) if file.is_file() else None


@torch.inference_mode()
def predict_golden(model: Segmenter, images: Iterable[GoldenImage]) -> GoldenImages:
    """The same images with the masks that `model`, on the CPU and in evaluation mode, gives them."""
    found = tuple(GoldenImage(g.image, masks_of(model, model.format, g), g.spacing_mm) for g in images)
    return GoldenImages(found, model.format, installed_versions())


@torch.inference_mode()
def masks_of(
    model: GivesLogits, format: MaskFormat, golden: GoldenImage, device: torch.device | str = "cpu"
) -> np.ndarray:
    """(H, W, P) planes that a model gives a golden image, decoded by `format`."""
    pred = format.decode(model.predict_coarse_logits(as_batch([golden.image]).to(device), golden.spacing_mm))
    return planes_of_batch(pred, format)[0]


def as_batch(images: Sequence[np.ndarray]) -> Tensor:
    """(N, B, H, W) of (H, W, B) images of one size."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def planes_of_batch(pred: Tensor, format: MaskFormat) -> list[np.ndarray]:
    """(H, W, P) planes of each image of (N, P, H, W)."""
    return list(pred.cpu().numpy().transpose(0, 2, 3, 1).astype(format.dtype))


def differing_share(planes: np.ndarray, others: np.ndarray) -> float:
    """Share of the pixels in which any of (H, W, P) planes is another."""
    if planes.shape != others.shape:
        return 1.0
    return float((planes != others).any(axis=2).mean())


def choose_images(data: MaskDataset, count: int) -> list[GoldenImage]:
    """Crops of samples spread over `data`, in each where its mask holds most different values."""
    chosen = np.unique(np.linspace(0, len(data) - 1, count).astype(int))
    images = []
    for index in chosen:
        sample = data.read(int(index))
        window = _busiest_window(sample.planes, _side_for(sample.image, sample.planes, len(chosen)))
        images.append(GoldenImage(sample.image[window], sample.planes[window], sample.spacing_mm))
    return images


def noise_images(model: Segmenter, sizes_hw: Iterable[tuple[int, int]], seed: int = 0) -> list[GoldenImage]:
    """Clouds of the brightness and contrast that the model was trained with; their planes are empty."""
    random = torch.Generator().manual_seed(seed)
    statistics = model.statistics
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (statistics.mean, statistics.std))
    dtype = np.dtype(statistics.dtype)
    images = []
    for height, width in sizes_hw:
        clouds = torch.randn((1, model.in_channels, -(-height // 8), -(-width // 8)), generator=random)
        smooth = F.interpolate(clouds, (height, width), mode="bilinear", align_corners=False)
        grain = torch.randn(smooth.shape, generator=random)
        values = (mean + std * (1.5 * smooth + 0.1 * grain))[0].permute(1, 2, 0).numpy()
        if dtype.kind == "u":
            values = values.round().clip(0, np.iinfo(dtype).max)
        empty = np.zeros((height, width, model.format.num_planes), model.format.dtype)
        images.append(GoldenImage(values.astype(dtype), empty))
    return images


def _spacing(values: np.ndarray | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)


def _side_for(image: np.ndarray, planes: np.ndarray, count: int) -> int:
    pixel = image.shape[2] * image.itemsize + planes.shape[2] * planes.itemsize
    return max(1, min(_LARGEST_SIDE, math.isqrt(_BYTES // (count * pixel))))


def _busiest_window(planes: np.ndarray, side: int) -> tuple[slice, slice]:
    """Where a window of `side` holds most different values in its planes; of equals the one nearest the centre."""
    height, width = planes.shape[:2]
    high, wide = min(side, height), min(side, width)
    best, found = -1.0, (slice(0, high), slice(0, wide))
    for down in np.linspace(0, 1, 5):
        for across in np.linspace(0, 1, 5):
            top, left = round(down * (height - high)), round(across * (width - wide))
            window = (slice(top, top + high), slice(left, left + wide))
            values = sum(len(np.unique(planes[(*window, plane)])) for plane in range(planes.shape[2]))
            score = values - abs(down - 0.5) - abs(across - 0.5)
            if score > best:
                best, found = score, window
    return found
