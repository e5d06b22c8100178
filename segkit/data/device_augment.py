"""Crops of images and planes that lie in one long buffer, cut and changed for a whole batch on the device.

Bare tensors only; what is done to each sample was drawn before, see `segkit.data.fast_augment.draw`. Pixels are
gathered, not sampled by `grid_sample`: images of several sizes lie in one buffer, image and planes are read at the very
same places, and a place in the middle of a pixel gives that pixel to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.data.fast_augment import MOST_COLOUR, STEP, Colours, turned_from_gray
from segkit.data.warp import Move

# A place half way between two pixels takes the second, as `resize_planes` does, though float32 is off by up to a
# thousandth of a pixel in images of ten thousand.
_HALF = 0.501


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
    moves: Sequence[Move], starts: Sequence[int], sizes_hw: Sequence[tuple[int, int]], device: torch.device
) -> Places:
    """Places of the pixels of crops, whose moves have one `size_hw`."""
    matrices = np.stack([move.to_source() for move in moves])
    layout = np.column_stack([np.asarray(starts, np.int64), np.asarray(sizes_hw, np.int64)])
    m = to_device(torch.from_numpy(matrices).float(), device)[..., None, None]  # (N, 2, 3, 1, 1)
    rows = to_device(torch.from_numpy(layout), device)[..., None, None]  # (N, 3, 1, 1)
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in moves[0].size_hw)
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
    x, y = ((axis + _HALF).floor().long() for axis in (places.x, places.y))
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


def recolor(values: Tensor, colours: Sequence[Colours], eight_bit: bool) -> Tensor:
    """Contrast and brightness; hue and saturation of 8-bit images of three bands.

    Args:
        values: (N, H, W, B).
        eight_bit: values are changed in units of 255; else each band in units of its own range.

    Returns:
        (N, H, W, B) float32, or `values` as they are where no colour changes.
    """
    mixed = eight_bit and values.shape[3] == 3 and any(c.mixes for c in colours)
    if not mixed and all((c.gain, c.offset) == (1.0, 0.0) for c in colours):
        return values
    values = values.float()
    drawn = np.array([(c.gain, c.offset, c.saturation, *turned_from_gray(c.hue_deg).flat) for c in colours])
    table = to_device(torch.from_numpy(drawn).float(), values.device)
    gain, offset = table[:, 0].view(-1, 1, 1, 1), table[:, 1].view(-1, 1, 1, 1)
    if not eight_bit:
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        return (values * gain + (low * (1 - gain) + offset * (high - low))).clamp(low, high)
    if mixed:
        values = _mix(values, table[:, 2], table[:, 3:].view(-1, 3, 3))
    # Gray stays gray in `_mix`, so it commutes with gain and offset.
    return (values * gain + offset * 255).clamp(0, 255)


def widen(values: Tensor) -> Tensor:
    """uint16 values, whose bits int16 holds, as int32; others as they are. torch computes little in uint16."""
    return values.int() & 0xFFFF if values.dtype == torch.int16 else values


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _mix(values: Tensor, saturation: Tensor, turned: Tensor) -> Tensor:
    """Colours turned about the gray axis, and stretched away from it by as much as their mean saturation asks for.

    Args:
        values: (N, H, W, 3) float32 in [0, 255].
        saturation: (N,) what is added to the mean, of 255.
        turned: (N, 3, 3), see `turned_from_gray`.
    """
    largest, smallest = (few := values[:, ::STEP, ::STEP]).amax(3), few.amin(3)
    mean = (255 * (largest - smallest) / largest.clamp(min=1)).mean((1, 2))
    factor = (1 + saturation / mean.clamp(min=1)).clamp(0, MOST_COLOUR)
    matrices = (1 / 3 + factor[:, None, None] * turned)[:, None, None]
    # Band by band and not by matmul, which may round to TF32 and would change colours that are to stay.
    red, green, blue = (values[..., band, None] * matrices[..., band] for band in range(3))
    return red + green + blue


def _mirrored(index: Tensor, side: Tensor) -> Tensor:
    """-1 is 1 and `side` is side - 2, however far beyond the border."""
    period = (2 * (side - 1)).clamp(min=1)
    index = index % period
    return torch.minimum(index, period - index).where(side > 1, torch.zeros_like(index))
