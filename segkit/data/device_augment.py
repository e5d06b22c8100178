"""Crops of images and planes that lie in one long buffer, cut and changed for a whole batch on the device.

Bare tensors only; what is done to each sample was drawn before, see `segkit.data.fast_params`. Pixels are gathered, not
sampled by `grid_sample`: images of several sizes lie in one buffer, image and planes are read at the very same places,
and a place in the middle of a pixel gives that pixel to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.data.fast_params import FastParams


@dataclass(frozen=True)
class Places:
    """Where each pixel of a batch of crops lies in its image.

    Attributes:
        x, y: (N, H, W) float32 in pixels of the image; whole numbers are centres.
        starts: (N, 1, 1) int64, row of the buffer at which the image begins.
        heights, widths: (N, 1, 1) int64, size of the image.
        whole: all places are centres of pixels.
    """

    x: Tensor
    y: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor
    whole: bool


def find_places(
    params: Sequence[FastParams],
    starts: Sequence[int],
    sizes_hw: Sequence[tuple[int, int]],
    crop_hw: tuple[int, int],
    device: torch.device,
) -> Places:
    """Places of the pixels of crops of one size."""
    matrices = np.stack([p.source_matrix(crop_hw) for p in params])
    layout = np.column_stack([np.asarray(starts, np.int64), np.asarray(sizes_hw, np.int64)])
    m = to_device(torch.from_numpy(matrices).float(), device)[..., None, None]  # (N, 2, 3, 1, 1)
    rows = to_device(torch.from_numpy(layout), device)[..., None, None]  # (N, 3, 1, 1)
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in crop_hw)
    y = y[:, None]
    return Places(
        x=m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2],
        y=m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2],
        starts=rows[:, 0],
        heights=rows[:, 1],
        widths=rows[:, 2],
        whole=bool((matrices % 1 == 0).all()),
    )


def take_planes(buffer: Tensor, places: Places, ignore_index: int) -> Tensor:
    """Values of the nearest pixels.

    Args:
        buffer: (pixels, P) uint8, or int16 with the bits of uint16.

    Returns:
        (N, P, H, W) uint8 or int32; `ignore_index` beyond the border of an image.
    """
    # A place half way takes the pixel after it, as `resize_planes` does.
    x, y = ((axis + 0.5).floor().long() for axis in (places.x, places.y))
    outside = (x < 0) | (x >= places.widths) | (y < 0) | (y >= places.heights)
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    inside_x, inside_y = x.clamp(zero, places.widths - 1), y.clamp(zero, places.heights - 1)
    planes = widen(buffer[places.starts + inside_y * places.widths + inside_x])
    return planes.masked_fill(outside[..., None], ignore_index).permute(0, 3, 1, 2).contiguous()


def take_pixels(buffer: Tensor, places: Places) -> Tensor:
    """Bilinear mixtures of the pixels around; beyond its border an image is mirrored at its outermost pixels.

    Args:
        buffer: (pixels, B) uint8, float32, or int16 with the bits of uint16.

    Returns:
        (N, H, W, B) uint8, int32 or float32 as stored where all places are centres, else float32.
    """
    left, top = places.x.floor(), places.y.floor()
    x, y = left.long(), top.long()

    def pixels(down: int, right: int) -> Tensor:
        rows, columns = _mirrored(y + down, places.heights), _mirrored(x + right, places.widths)
        return widen(buffer[places.starts + rows * places.widths + columns])

    if places.whole:
        return pixels(0, 0)
    across, along = (places.x - left)[..., None], (places.y - top)[..., None]
    upper = torch.lerp(pixels(0, 0).float(), pixels(0, 1).float(), across)
    lower = torch.lerp(pixels(1, 0).float(), pixels(1, 1).float(), across)
    return torch.lerp(upper, lower, along)


def recolor(values: Tensor, params: Sequence[FastParams], range_of_type: tuple[float, float] | None) -> Tensor:
    """Contrast, brightness, saturation and hue, see `FastParams.color_matrix`.

    Args:
        values: (N, H, W, B).
        range_of_type: the lowest and highest value there can be; None takes those of each crop.

    Returns:
        (N, H, W, B) float32, or `values` as they are where no colour changes.
    """
    bands = values.shape[3]
    matrices = np.stack([p.color_matrix(bands) for p in params])
    if (matrices == np.eye(bands)).all() and all(p.brightness == 0 for p in params):
        return values
    values = values.float()
    if range_of_type is None:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    else:
        low, high = (torch.full((1, 1, 1, 1), limit, device=values.device) for limit in range_of_type)
    light = np.array([(p.contrast, p.brightness) for p in params])
    contrast, brightness = to_device(torch.from_numpy(light).float(), values.device).view(-1, 2, 1, 1, 1).unbind(1)
    offset = low * (1 - contrast) + brightness * (high - low)
    return (_mixed(values, matrices, contrast) + offset).clamp(low, high)


def widen(values: Tensor) -> Tensor:
    """uint16 values, whose bits int16 holds, as int32; others as they are. torch computes little in uint16."""
    return values.int() & 0xFFFF if values.dtype == torch.int16 else values


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _mixed(values: Tensor, matrices: np.ndarray, contrast: Tensor) -> Tensor:
    """(N, B, B) matrices times the bands of each pixel."""
    bands = values.shape[3]
    if (matrices == np.eye(bands) * matrices[:, :1, :1]).all():
        return values * contrast
    m = to_device(torch.from_numpy(matrices).float(), values.device)
    # Band by band and not by matmul, which may round to TF32 and would change colours that are to stay.
    columns = (values[..., band : band + 1] * m[:, None, None, :, band] for band in range(bands))
    return sum(columns, torch.zeros((), device=values.device))


def _mirrored(index: Tensor, side: Tensor) -> Tensor:
    """-1 is 1 and `side` is side - 2, however far beyond the border."""
    period = (2 * (side - 1)).clamp(min=1)
    index = index % period
    return torch.minimum(index, period - index).where(side > 1, torch.zeros_like(index))
