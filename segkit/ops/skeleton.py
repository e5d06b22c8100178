"""The soft skeleton of a map: what thinning leaves of it, with a gradient (Shit et al. 2021, algorithm 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_skeleton(maps: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """Centre lines of what is bright.

    Each round takes a pixel off every border, and keeps what an opening would lose.

    Args:
        maps: (N, C, H, W) float in [0, 1].
        valid: bool of that shape; False pixels are taken as those beyond the edge of the image, which neither thin
            nor thicken what is near them, and are 0 in the result.
        iterations: rounds; a line wider than about twice as many pixels leaves nothing.

    Returns:
        (N, C, H, W) like `maps`, in [0, 1].
    """
    skeleton = F.relu(maps - _dilate(_erode(maps, valid), valid))
    for _ in range(iterations):
        maps = _erode(maps, valid)
        lost = F.relu(maps - _dilate(_erode(maps, valid), valid))
        skeleton = skeleton + F.relu(lost - skeleton * lost)
    return torch.where(valid, skeleton, 0.0)


def _erode(maps: Tensor, valid: Tensor) -> Tensor:
    """Least of a pixel and its four neighbours."""
    dark = -torch.where(valid, maps, 1.0)
    down = F.max_pool2d(dark, (3, 1), 1, (1, 0))
    across = F.max_pool2d(dark, (1, 3), 1, (0, 1))
    return -torch.maximum(down, across)


def _dilate(maps: Tensor, valid: Tensor) -> Tensor:
    """Largest of a pixel and its eight neighbours."""
    return F.max_pool2d(torch.where(valid, maps, 0.0), 3, 1, 1)
