"""Right and wrong pixels of each class of each image: the counts every score is made of.

On CUDA, `segkit.ops.counts_triton` counts in one pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segkit.ops.backend import runs_triton
from segkit.ops.parallel import in_order

# Up to so many classes all pairs of (truth, prediction) are counted in one pass: half a million numbers per image.
_MAX_PAIR_CLASSES = 700
# Sets of bins that neighbouring pixels take turns in.
_LANES = 4
# Up to so many classes a program on CUDA counts all in its registers.
_KERNEL_CLASSES = 1023
# Bool maps of this many pixels at a time, where every class is compared with every pixel: 150 classes of a 4-megapixel
# image would take 1.2 GiB at once.
_MAP_PIXELS = 2**24


def count_indices(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts of planes that hold class indices.

    Args:
        pred: (N, 1, H, W) integers; what is no class is a miss of whatever class is true.
        target: (N, 1, H, W) integers; `ignore_index` counts nowhere.

    Returns:
        (N, C, 4) int64 [tp, fp, fn, tn] of each class against the rest; they sum to the valid pixels.
    """
    if num_classes <= _KERNEL_CLASSES and _has_kernel(pred):
        import segkit.ops.counts_triton as kernels

        return kernels.count_indices(pred, target, num_classes, ignore_index)
    if pred.device.type != "cpu":
        return _count_maps(pred, target, torch.arange(num_classes, device=pred.device), ignore_index)
    rows = torch.zeros((len(target), num_classes, 4), dtype=torch.int64)

    def count(image: int) -> None:
        rows[image] = _count_index_image(pred[image], target[image], num_classes, ignore_index)

    for _ in in_order(count, range(len(target)), target.device):
        pass
    return rows


def count_binary(pred: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Counts of planes that hold 0 and 1, one plane per class.

    Args:
        pred: (N, C, H, W) integers; 1 is there, all else is not.
        target: (N, C, H, W) integers; `ignore_index` counts nowhere.

    Returns:
        (N, C, 4) int64 [tp, fp, fn, tn]; they sum to the valid pixels of the class.
    """
    if _has_kernel(pred):
        import segkit.ops.counts_triton as kernels

        return kernels.count_binary(pred, target, ignore_index)
    if pred.device.type != "cpu":
        return _count_maps(pred, target, torch.ones((), device=pred.device), ignore_index)
    rows = np.empty((*pred.shape[:2], 4), np.int64)
    for n, c in np.ndindex(*pred.shape[:2]):
        rows[n, c] = _count_binary_plane(pred[n, c].numpy(), target[n, c].numpy(), ignore_index)
    return torch.from_numpy(rows)


def _has_kernel(planes: Tensor) -> bool:
    return runs_triton(planes.device) and planes.numel() > 0


def _count_index_image(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """(1, H, W) each to (C, 4)."""
    # Bin num_classes: no class; num_classes + 1 of the target: ignored. A CPU does many small integers at once.
    if target.dtype == torch.uint8 and num_classes + 1 > 255:
        target = target.to(torch.int16)
    p, t = (_known(planes[0], num_classes) for planes in (pred, target))
    t = t.add_((target[0] == ignore_index).view(torch.uint8))
    if num_classes <= _MAX_PAIR_CLASSES:
        counted = _count_pairs(t, p, num_classes + 1)[:-1]
        tp, predicted, truth = counted.diagonal(), counted.sum(0), counted.sum(1)
    else:
        p, t = p.flatten(), t.flatten()
        predicted = torch.bincount(torch.where(t <= num_classes, p, num_classes), minlength=num_classes + 1)
        truth = torch.bincount(t, minlength=num_classes + 2)[:-1]
        tp = torch.bincount(torch.where(p == t, p, num_classes), minlength=num_classes + 1)
    known = truth.sum()
    tp, fp, fn = tp[:num_classes], (predicted - tp)[:num_classes], (truth - tp)[:num_classes]
    return torch.stack([tp, fp, fn, known - tp - fp - fn], dim=1)


def _known(plane: Tensor, num_classes: int) -> Tensor:
    """A copy in which whatever is no class is `num_classes`."""
    known = plane.clamp_max(num_classes)
    return known if plane.dtype == torch.uint8 else known.masked_fill_(plane < 0, num_classes)


def _count_pairs(target: Tensor, pred: Tensor, bins: int) -> Tensor:
    """(bins + 1, bins) pixels of each pair, from (H, W) bins of the target and of the prediction."""
    pairs = (bins + 1) * bins
    small = torch.int16 if _LANES * pairs < 2**15 else torch.int32
    # Neighbours mostly fall into one bin, and a CPU waits for each addition to it: so they get bins of their own.
    lanes = (torch.arange(target.shape[1]) % _LANES * pairs).to(small)
    index = target.to(small).mul_(bins).add_(pred).add_(lanes)
    return torch.bincount(index.flatten(), minlength=_LANES * pairs).view(_LANES, bins + 1, bins).sum(0)


def _count_binary_plane(pred: np.ndarray, target: np.ndarray, ignore_index: int) -> tuple[int, int, int, int]:
    """(H, W) each. numpy counts a bool map in a twentieth of torch's time."""
    valid, truth = target != ignore_index, target == 1
    found = (pred == 1) & valid
    tp, predicted, true, known = (int(np.count_nonzero(m)) for m in (found & truth, found, truth, valid))
    return tp, predicted - tp, true - tp, known - predicted - true + tp


def _count_maps(pred: Tensor, target: Tensor, values: Tensor, ignore_index: int) -> Tensor:
    """(N, C, 4) by comparing planes with the value that says *there*; where bincount would wait for the device."""
    n, planes, height, width = target.shape
    values = values.view(-1, 1, 1)
    c = max(planes, len(values))
    lines = max(1, _MAP_PIXELS // max(1, c * width))
    rows = torch.zeros((n, c, 4), dtype=torch.int64, device=target.device)
    for image in range(n):
        for y in range(0, height, lines):
            p, t = pred[image, :, y : y + lines], target[image, :, y : y + lines]
            valid, truth = t != ignore_index, t == values
            found = (p == values) & valid
            tp, predicted, true = (m.sum((1, 2)) for m in (found & truth, found, truth))
            known = valid.sum((1, 2)).expand(c)
            rows[image] += torch.stack([tp, predicted - tp, true - tp, known - predicted - true + tp], dim=1)
    return rows
