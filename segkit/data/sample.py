"""One sample and one batch: an image, its planes, and the names they carry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segkit.data.packed import PackedPlanes

IMAGE_DTYPES = (np.uint8, np.uint16, np.float32)


@dataclass
class Sample:
    """An image and its mask, in the same pixels.

    Attributes:
        stem: name of the sample, such as `town/a` or `case@z017`.
        image: (H, W, B) uint8, uint16 or float32, in stored units; colours are red, green, blue.
        planes: (H, W, P) uint8 or uint16, see `MaskFormat`.
        spacing_mm: (row, column) distances, where the file tells them.
    """

    stem: str
    image: np.ndarray
    planes: np.ndarray
    spacing_mm: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.dtype not in IMAGE_DTYPES:
            raise ValueError(
                f"{self.stem}: image is {self.image.dtype} of shape {self.image.shape}, expected uint8, uint16 or "
                "float32 of shape (height, width, bands)."
            )
        if self.planes.ndim != 3 or self.planes.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"{self.stem}: mask is {self.planes.dtype} of shape {self.planes.shape}, expected uint8 or uint16 of "
                "shape (height, width, planes)."
            )
        if self.image.shape[:2] != self.planes.shape[:2]:
            raise ValueError(
                f"{self.stem}: image is {_size_text(self.image)} but its mask is {_size_text(self.planes)} "
                "(height x width). Store both in the same size, or leave the sample out with `quarantine`."
            )

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def stored_planes(self) -> np.ndarray | PackedPlanes:
        """`planes`, or what takes their place until rows and columns are chosen, see `packed.unpacked`."""
        return self.planes


@dataclass
class Batch:
    """Samples of one size, as tensors.

    Attributes:
        stems: N names.
        images: (N, B, H, W) as stored: uint8 stays uint8 until it is on the device.
        target: (N, P, H, W) of `MaskFormat.torch_dtype`.
        spacing_mm: (row, column) distances that all samples share, else None.
        indices: N numbers of the samples in their data set, where batches are scored; else None.
    """

    stems: list[str]
    images: Tensor
    target: Tensor
    spacing_mm: tuple[float, ...] | None = None
    indices: list[int] | None = None

    def __len__(self) -> int:
        return len(self.stems)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            target=self.target.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        return replace(self, images=self.images.pin_memory(), target=self.target.pin_memory())


def _size_text(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
