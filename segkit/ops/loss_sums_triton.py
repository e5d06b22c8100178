"""Sums of losses and their gradient on CUDA: one pass over the logits each way.

A program holds all classes of a block of pixels in registers, so that a logit is read once: forwards for the sums and
log Σ exp, backwards for the gradient. Blocks are dealt to programs in a fixed order, each program writes its own sums,
and torch adds those in float64: equal inputs give equal bits. Float64 logits are computed in float64, others in
float32.

Bytes through memory, the least there can be, with b bytes per logit and t per number of the target's P planes:

    forward     N·H·W · (C·b + P·t + 4 if softmax)      reads logits and target, writes log Σ exp
    backward    N·H·W · (2·C·b + P·t + 4 if softmax)    reads logits, target, log Σ exp, writes the gradient

and 4 · (2 + 3 C) bytes of each of at most 2048 programs. Arithmetic is 35 to 60 instructions for each number of a tile,
whose classes are padded to a power of two (compiled for Hopper by Triton 3.8): for logits in half precision it can take
longer than memory. `segkit.ops.loss_cells_triton` does the same for logits that are to be upsampled.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import segkit.ops.loss_cells_triton as cells
from segkit.ops.loss_tiles import TileLoss
from segkit.ops.loss_tiles_triton import (
    constants,
    finish,
    read_grad,
    read_truth,
    read_weights,
    tile_backward,
    tile_forward,
    tile_shape,
    weights_of,
    write_sums,
)
from segkit.ops.upsample import CoarseLogits

# Programs that sum: enough for several on each core of any GPU, few enough that their sums are no traffic.
_PROGRAMS = 2048
# Pixels of a tile, at least: 64 bytes of each class in half precision.
_PIXELS = 32


def forward(logits: CoarseLogits, target: Tensor, loss: TileLoss) -> tuple[Tensor, Tensor]:
    """(2 + 3 C,) sums in the order of `LossSums`; (N, H, W) log Σ exp of each pixel, (0,) for sigmoids."""
    if logits.upsampled:
        return cells.forward(logits, target, loss)
    values = logits.values
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    _, (rows, columns) = _lines(target, values)
    block_c, block_p, warps = tile_shape(loss.num_classes, _PIXELS, dtype)
    blocks = len(values) * rows * triton.cdiv(columns, block_p)
    partial = torch.empty((min(blocks, _PROGRAMS), 2 + 3 * loss.num_classes), dtype=dtype, device=values.device)
    pixels = (len(target), *target.shape[2:]) if loss.choices.softmax else (0,)
    normalizers = torch.empty(pixels, dtype=dtype, device=values.device)
    with torch.cuda.device_of(values):
        _forward[(len(partial),)](
            values,
            target,
            weights_of(loss, dtype),
            partial,
            normalizers,
            *values.stride(),
            *target.stride(),
            rows,
            columns,
            blocks,
            loss.num_classes,
            loss.choices.ignore_index,
            **constants(loss, dtype, values, target),
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=warps,
        )
    return finish(partial, loss), normalizers


def backward(logits: CoarseLogits, target: Tensor, loss: TileLoss, normalizers: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the values, in their dtype, from the (2 + 3 C,) gradient of the sums."""
    if logits.upsampled:
        return cells.backward(logits, target, loss, normalizers, grad)
    values = logits.values
    result = torch.empty_like(values)
    (rows, columns), target_size = _lines(target, values, result)
    block_c, block_p, warps = tile_shape(loss.num_classes, _PIXELS, grad.dtype)
    with torch.cuda.device_of(values):
        _backward[(len(values) * rows * triton.cdiv(columns, block_p),)](
            values,
            target,
            weights_of(loss, grad.dtype),
            normalizers,
            grad.contiguous(),
            result,
            *values.stride(),
            *target.stride(),
            *result.stride(),
            rows,
            columns,
            *target_size,
            loss.num_classes,
            loss.choices.ignore_index,
            **constants(loss, grad.dtype, values, target, result),
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=warps,
        )
    return result


def _lines(target: Tensor, *logits: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of logits and target: an image is one row where its lines follow each other in memory."""
    height, width = logits[0].shape[-2:]
    size_hw = target.shape[-2], target.shape[-1]
    if size_hw == (height, width) and all(t.stride(-2) == width * t.stride(-1) for t in (target, *logits)):
        return (1, height * width), (1, height * width)
    return (height, width), size_hw


# Unknown to be 1, the stride between pixels leaves a thread one pixel and many classes, which it sums by itself. With
# vectors of pixels it has to exchange numbers with others for each of them: 64 instead of 38 instructions per logit.
@triton.jit(do_not_specialize=["stride_x", "target_x"])
def _forward(
    values,
    target,
    weights,
    partial,
    normalizers,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    target_n,
    target_c,
    target_y,
    target_x,
    rows,
    columns,
    blocks,
    num_classes,
    ignore_index,
    SOFTMAX: tl.constexpr,
    INDEX_PLANES: tl.constexpr,
    TERM: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
    OVERLAP: tl.constexpr,
    DTYPE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    classes = tl.arange(0, BLOCK_C)[:, None]
    real = classes < num_classes
    class_offsets = classes.to(OFFSET) * stride_c
    steps = tl.cdiv(columns, BLOCK_P)
    # Whole tiles: to sum over the pixels of each block would take longer than all else.
    term_sum = tl.zeros([1 if SOFTMAX else BLOCK_C, BLOCK_P], DTYPE)
    known = tl.zeros([1 if INDEX_PLANES else BLOCK_C, BLOCK_P], DTYPE)
    both = tl.zeros([BLOCK_C, BLOCK_P], DTYPE)
    probs = tl.zeros([BLOCK_C, BLOCK_P], DTYPE)
    there = tl.zeros([BLOCK_C, BLOCK_P], DTYPE)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        line = block // steps
        image = tl.cast(line // rows, tl.int64)
        y = tl.cast(line % rows, tl.int64)
        x = (block % steps) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :].to(OFFSET)
        inside = x < columns
        start = values + image * stride_n + y * stride_y
        z = tl.load(start + class_offsets + x * stride_x, mask=real & inside, other=-float("inf")).to(DTYPE)
        places = image * target_n + y * target_y + x * target_x
        if not INDEX_PLANES:
            places = places + classes.to(OFFSET) * target_c
        truth, valid, index = read_truth(target, places, classes, real, inside, ignore_index, INDEX_PLANES)
        weight = read_weights(weights, classes, real, index, valid, num_classes, SOFTMAX, DTYPE)
        p, term, normalizer = tile_forward(z, truth, valid, real, weight, num_classes, SOFTMAX, TERM, GAMMA, SMOOTHING)
        there += tl.where(truth, 1.0, 0.0)
        if OVERLAP:
            both += tl.where(truth, p, 0.0)
            probs += p
        if TERM:
            term_sum += term
            known += tl.where(valid, 1.0, 0.0)
        if SOFTMAX:
            tl.store(normalizers + line * tl.cast(columns, tl.int64) + x, normalizer, mask=inside)
    write_sums(partial, term_sum, known, both, probs, there, classes, num_classes)


@triton.jit(do_not_specialize=["stride_x", "target_x"])
def _backward(
    values,
    target,
    weights,
    normalizers,
    grad,
    result,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    target_n,
    target_c,
    target_y,
    target_x,
    result_n,
    result_c,
    result_y,
    result_x,
    rows,
    columns,
    target_rows,
    target_columns,
    num_classes,
    ignore_index,
    SOFTMAX: tl.constexpr,
    INDEX_PLANES: tl.constexpr,
    TERM: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
    OVERLAP: tl.constexpr,
    DTYPE: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    classes = tl.arange(0, BLOCK_C)[:, None]
    real = classes < num_classes
    steps = tl.cdiv(columns, BLOCK_P)
    line = tl.program_id(0) // steps
    image = tl.cast(line // rows, tl.int64)
    y = tl.cast(line % rows, tl.int64)
    x = (tl.program_id(0) % steps) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :].to(OFFSET)
    written = real & (x < columns)
    # Stride padding is not in the target: its gradient is 0, and it must be written too.
    inside = (x < target_columns) & (y < target_rows)
    start = values + image * stride_n + y * stride_y
    z = tl.load(start + classes.to(OFFSET) * stride_c + x * stride_x, mask=real & inside, other=-float("inf"))
    places = image * target_n + y * target_y + x * target_x
    if not INDEX_PLANES:
        places = places + classes.to(OFFSET) * target_c
    truth, valid, index = read_truth(target, places, classes, real, inside, ignore_index, INDEX_PLANES)
    weight = read_weights(weights, classes, real, index, valid, num_classes, SOFTMAX, DTYPE)
    normalizer = 0.0
    if SOFTMAX:
        normalizer = tl.load(normalizers + (image * target_rows + y) * target_columns + x, mask=inside, other=0.0)
    grad_term, grad_both, grad_probs = read_grad(grad, classes, real, num_classes, OVERLAP)
    gradient = tile_backward(
        z.to(DTYPE),
        truth,
        valid,
        weight,
        normalizer,
        grad_term,
        grad_both,
        grad_probs,
        num_classes,
        SOFTMAX,
        TERM,
        GAMMA,
        SMOOTHING,
        OVERLAP,
    )
    start = result + image * result_n + y * result_y
    tl.store(start + classes.to(OFFSET) * result_c + x * result_x, gradient, mask=written)
