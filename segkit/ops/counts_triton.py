"""Counts of right and wrong pixels on CUDA, from planes, in one pass and without waiting for the device.

Programs count in integers and write what they counted, torch adds it in int64: no float rounds, and no order matters.
Bytes through memory: those of pred and target, which are read once, and the counts of at most 256 programs per image,
or 64 per plane of 0 and 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs of an image of class indices; each writes counts of all classes.
_INDEX_PROGRAMS = 256
# Programs of a plane of 0 and 1.
_BINARY_PROGRAMS = 64
_PIXELS = 1024


def count_indices(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """As `segkit.ops.counts.count_indices`."""
    pred, target = pred[:, 0], target[:, 0]
    (rows, columns), pixels, blocks = _blocks(pred, target)
    programs = min(_INDEX_PROGRAMS, blocks)
    found = torch.empty((len(pred), programs, 1 + 3 * num_classes), dtype=torch.int32, device=pred.device)
    with torch.cuda.device_of(pred):
        _count_indices[(len(pred), programs)](
            pred,
            target,
            found,
            *pred.stride(),
            *target.stride(),
            rows,
            columns,
            blocks,
            num_classes,
            ignore_index,
            PIXELS=pixels,
            # One for all that is no class or not counted; a histogram has a power of two, and one for each thread.
            BINS=max(128, triton.next_power_of_2(num_classes + 1)),
            num_warps=4,
        )
    total = found.sum(1)
    known, (tp, predicted, truth) = total[:, :1], total[:, 1:].view(-1, 3, num_classes).unbind(1)
    return _confusion(tp, predicted, truth, known)


def count_binary(pred: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """As `segkit.ops.counts.count_binary`."""
    (rows, columns), pixels, blocks = _blocks(pred, target)
    programs = min(_BINARY_PROGRAMS, blocks)
    n, c = pred.shape[:2]
    found = torch.empty((n, c, programs, 4), dtype=torch.int32, device=pred.device)
    with torch.cuda.device_of(pred):
        _count_binary[(n * c, programs)](
            pred,
            target,
            found,
            *pred.stride(),
            *target.stride(),
            c,
            rows,
            columns,
            blocks,
            ignore_index,
            PIXELS=pixels,
            num_warps=4,
        )
    return _confusion(*found.sum(2).unbind(-1))


def _confusion(tp: Tensor, predicted: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """(N, C, 4) [tp, fp, fn, tn] of (N, C) counts."""
    return torch.stack([tp, predicted - tp, truth - tp, known - predicted - truth + tp], dim=-1)


def _blocks(pred: Tensor, target: Tensor) -> tuple[tuple[int, int], int, int]:
    """Rows and columns of an image, one row where lines follow each other in memory; pixels of a block; blocks."""
    rows, columns = pred.shape[-2:]
    if all(t.stride(-2) == columns * t.stride(-1) for t in (pred, target)):
        rows, columns = 1, rows * columns
    pixels = max(128, min(_PIXELS, triton.next_power_of_2(columns)))
    return (rows, columns), pixels, rows * triton.cdiv(columns, pixels)


@triton.jit
def _read(
    pred,
    target,
    pred_y,
    pred_x,
    target_y,
    target_x,
    columns,
    block,
    ignore_index,
    PIXELS: tl.constexpr,
):
    """int32 prediction and truth of a block of pixels of an image, and whether they count."""
    steps = tl.cdiv(columns, PIXELS)
    y = tl.cast(block // steps, tl.int64)
    x = (block % steps) * PIXELS + tl.arange(0, PIXELS).to(tl.int64)
    inside = x < columns
    p = tl.load(pred + y * pred_y + x * pred_x, mask=inside, other=0).to(tl.int32)
    t = tl.load(target + y * target_y + x * target_x, mask=inside, other=0).to(tl.int32)
    return p, t, inside & (t != ignore_index)


@triton.jit
def _count_indices(
    pred,
    target,
    found,
    pred_n,
    pred_y,
    pred_x,
    target_n,
    target_y,
    target_x,
    rows,
    columns,
    blocks,
    num_classes,
    ignore_index,
    PIXELS: tl.constexpr,
    BINS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    pred += image * pred_n
    target += image * target_n
    tp = tl.zeros([BINS], tl.int32)
    predicted = tl.zeros([BINS], tl.int32)
    truth = tl.zeros([BINS], tl.int32)
    known = tl.zeros([PIXELS], tl.int32)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        p, t, valid = _read(pred, target, pred_y, pred_x, target_y, target_x, columns, block, ignore_index, PIXELS)
        p = tl.where(valid & (p >= 0) & (p < num_classes), p, num_classes)
        t = tl.where(valid & (t >= 0) & (t < num_classes), t, num_classes)
        tp += tl.histogram(tl.where(p == t, p, num_classes), BINS)
        predicted += tl.histogram(p, BINS)
        truth += tl.histogram(t, BINS)
        known += tl.where(valid, 1, 0)
    places = found + (image * tl.num_programs(1) + tl.program_id(1)) * (1 + 3 * num_classes)
    tl.store(places, tl.sum(known, 0))
    bins = tl.arange(0, BINS)
    tl.store(places + 1 + bins, tp, mask=bins < num_classes)
    tl.store(places + 1 + num_classes + bins, predicted, mask=bins < num_classes)
    tl.store(places + 1 + 2 * num_classes + bins, truth, mask=bins < num_classes)


@triton.jit
def _count_binary(
    pred,
    target,
    found,
    pred_n,
    pred_c,
    pred_y,
    pred_x,
    target_n,
    target_c,
    target_y,
    target_x,
    num_classes,
    rows,
    columns,
    blocks,
    ignore_index,
    PIXELS: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    pred += plane // num_classes * pred_n + plane % num_classes * pred_c
    target += plane // num_classes * target_n + plane % num_classes * target_c
    tp = tl.zeros([PIXELS], tl.int32)
    predicted = tl.zeros([PIXELS], tl.int32)
    truth = tl.zeros([PIXELS], tl.int32)
    known = tl.zeros([PIXELS], tl.int32)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        p, t, valid = _read(pred, target, pred_y, pred_x, target_y, target_x, columns, block, ignore_index, PIXELS)
        found_here, true_here = valid & (p == 1), valid & (t == 1)
        tp += tl.where(found_here & true_here, 1, 0)
        predicted += tl.where(found_here, 1, 0)
        truth += tl.where(true_here, 1, 0)
        known += tl.where(valid, 1, 0)
    places = found + (plane * tl.num_programs(1) + tl.program_id(1)) * 4
    tl.store(places, tl.sum(tp, 0))
    tl.store(places + 1, tl.sum(predicted, 0))
    tl.store(places + 2, tl.sum(truth, 0))
    tl.store(places + 3, tl.sum(known, 0))
