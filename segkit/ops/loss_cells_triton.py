"""Sums of losses and their gradient on CUDA, of logits that are to be upsampled: nothing of full resolution is built.

A *cell* is the square between four coarse values; every pixel lies in exactly one, and is a mixture of its corners. A
program takes a few cells of one row of cells, walks through their pixels line by line, and mixes them in registers; all
classes of a pixel at once. Backwards it adds the gradient of each corner up in registers and writes (4, C, h, w) of
them, which are then added where they meet: each pixel is computed once, in a fixed order, so that equal inputs give
equal bits. Float64 logits are computed in float64, others in float32.

Bytes through memory, the least there can be, with b bytes per coarse logit and t per number of the target's P planes:

    forward     N·C·h·w · b + N·H·W · (P·t + 4 if softmax)           reads logits and target, writes log Σ exp
    backward    N·C·h·w · (2·b + 32) + N·H·W · (P·t + 4 if softmax)  the same read; gradient written, corners both

Arithmetic is the limit: 30 to 60 instructions for each of N·C·H·W logits, with C padded to a power of two (compiled
for Hopper by Triton 3.8). Corners of one image stay in the cache of a large GPU, and cost no traffic to memory there.

Peak memory beside the gradient and log Σ exp: the corners of one image, 4/N of all coarse logits in float32, or of as
many images as fit into 32 MiB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from segkit.ops.upsample_lines import line_tables

# Programs that sum: enough for several on each core of any GPU, few enough that their sums are no traffic.
_PROGRAMS = 4096
# Cells of a tile, at least. Up to 128 classes that is one warp, which sums over classes without waiting for others.
_CELLS = 4
# Corners at a time: less than the cache of an A100 or H100 (40 and 50 MB), so that they are added there.
_CORNER_BYTES = 2**25


def forward(logits: CoarseLogits, target: Tensor, loss: TileLoss) -> tuple[Tensor, Tensor]:
    """(2 + 3 C,) sums in the order of `LossSums`; (N, H, W) log Σ exp of each pixel, (0,) for sigmoids."""
    values = logits.values
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    rows, columns = line_tables(logits, dtype)
    block_c, block, warps = tile_shape(loss.num_classes, _CELLS, dtype)
    blocks = len(values) * values.shape[2] * triton.cdiv(values.shape[3], block)
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
            rows.starts,
            rows.shares,
            columns.starts,
            columns.shares,
            *values.stride(),
            *target.stride(),
            *values.shape[2:],
            *target.shape[2:],
            blocks,
            loss.num_classes,
            loss.choices.ignore_index,
            **constants(loss, dtype, values, target),
            BLOCK_C=block_c,
            BLOCK=block,
            num_warps=warps,
        )
    return finish(partial, loss), normalizers


def backward(logits: CoarseLogits, target: Tensor, loss: TileLoss, normalizers: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the values, in their dtype, from the (2 + 3 C,) gradient of the sums."""
    values, grad = logits.values, grad.contiguous()
    weights = weights_of(loss, grad.dtype)
    rows, columns = line_tables(logits, grad.dtype)
    block_c, block, warps = tile_shape(loss.num_classes, _CELLS, grad.dtype)
    result = torch.empty_like(values)
    images = max(1, _CORNER_BYTES // (4 * values[0].numel() * grad.element_size()))
    corners = grad.new_empty((min(len(values), images), 4, *values.shape[1:]))
    for start in range(0, len(values), images):
        part = values[start : start + images]
        here = corners[: len(part)]
        with torch.cuda.device_of(values):
            _backward[(len(part) * part.shape[2] * triton.cdiv(part.shape[3], block),)](
                part,
                target[start : start + images],
                weights,
                normalizers[start : start + images],
                grad,
                here,
                rows.starts,
                rows.shares,
                columns.starts,
                columns.shares,
                *part.stride(),
                *target.stride(),
                *part.shape[2:],
                *target.shape[2:],
                loss.num_classes,
                loss.choices.ignore_index,
                **constants(loss, grad.dtype, values, target),
                BLOCK_C=block_c,
                BLOCK=block,
                num_warps=warps,
            )
        result[start : start + images] = _fold(here)
    return result


def _fold(corners: Tensor) -> Tensor:
    """(n, C, h, w) gradient from the (n, 4, C, h, w) of cells for their corners; in place, in the first corner."""
    result = corners[:, 0]
    result[..., 1:] += corners[:, 1, ..., :-1]
    result[..., 1:, :] += corners[:, 2, ..., :-1, :]
    result[..., 1:, 1:] += corners[:, 3, ..., :-1, :-1]
    return result


@triton.jit
def _read_line(upper, lower, left, right, share, real, lives, DTYPE: tl.constexpr):
    """(C, cells) logits at the left border of cells on one line of pixels, -infinity in padding; right minus left."""
    mask = real & lives
    a = tl.load(upper + left, mask=mask, other=0.0).to(DTYPE)
    b = tl.load(lower + left, mask=mask, other=0.0).to(DTYPE)
    start = a + share * (b - a)
    a = tl.load(upper + right, mask=mask, other=0.0).to(DTYPE)
    b = tl.load(lower + right, mask=mask, other=0.0).to(DTYPE)
    return tl.where(real, start, -float("inf")), a + share * (b - a) - start


@triton.jit
def _forward(
    values,
    target,
    weights,
    partial,
    normalizers,
    row_starts,
    row_shares,
    column_starts,
    column_shares,
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
    height,
    width,
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
    BLOCK: tl.constexpr,
):
    classes = tl.arange(0, BLOCK_C)[:, None]
    real = classes < num_classes
    class_offsets = classes.to(OFFSET) * stride_c
    steps = tl.cdiv(columns, BLOCK)
    # Whole tiles: to sum over cells for each pixel would take longer than the pixel.
    term_sum = tl.zeros([1 if SOFTMAX else BLOCK_C, BLOCK], DTYPE)
    known = tl.zeros([1 if INDEX_PLANES else BLOCK_C, BLOCK], DTYPE)
    both = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    probs = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    there = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        line = block // steps
        image = tl.cast(line // rows, tl.int64)
        row = line % rows
        column = (block % steps) * BLOCK + tl.arange(0, BLOCK)[None, :]
        lives = column < columns
        first = tl.load(column_starts + column, mask=lives, other=0)
        stop = tl.load(column_starts + column + 1, mask=lives, other=0)
        upper = values + image * stride_n + tl.cast(row, tl.int64) * stride_y
        lower = upper + tl.where(row + 1 < rows, 1, 0) * stride_y
        left = class_offsets + column.to(OFFSET) * stride_x
        right = left + tl.where(column + 1 < columns, 1, 0) * stride_x
        for y in range(tl.load(row_starts + row), tl.load(row_starts + row + 1)):
            start, step = _read_line(upper, lower, left, right, tl.load(row_shares + y), real, lives, DTYPE)
            for k in range(tl.max(tl.max(stop - first, 1), 0)):
                x = first + k
                inside = x < stop
                z = start + tl.load(column_shares + x, mask=inside, other=0.0) * step
                places = image * target_n + tl.cast(y, tl.int64) * target_y + x.to(OFFSET) * target_x
                if not INDEX_PLANES:
                    places = places + classes.to(OFFSET) * target_c
                truth, valid, index = read_truth(target, places, classes, real, inside, ignore_index, INDEX_PLANES)
                weight = read_weights(weights, classes, real, index, valid, num_classes, SOFTMAX, DTYPE)
                p, term, normalizer = tile_forward(
                    z, truth, valid, real, weight, num_classes, SOFTMAX, TERM, GAMMA, SMOOTHING
                )
                there += tl.where(truth, 1.0, 0.0)
                if OVERLAP:
                    both += tl.where(truth, p, 0.0)
                    probs += p
                if TERM:
                    term_sum += term
                    known += tl.where(valid, 1.0, 0.0)
                if SOFTMAX:
                    tl.store(normalizers + (image * height + y) * width + x, normalizer, mask=inside)
    write_sums(partial, term_sum, known, both, probs, there, classes, num_classes)


@triton.jit
def _backward(
    values,
    target,
    weights,
    normalizers,
    grad,
    corners,
    row_starts,
    row_shares,
    column_starts,
    column_shares,
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
    height,
    width,
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
    BLOCK: tl.constexpr,
):
    classes = tl.arange(0, BLOCK_C)[:, None]
    real = classes < num_classes
    steps = tl.cdiv(columns, BLOCK)
    line = tl.program_id(0) // steps
    image = tl.cast(line // rows, tl.int64)
    row = line % rows
    column = (tl.program_id(0) % steps) * BLOCK + tl.arange(0, BLOCK)[None, :]
    lives = column < columns
    first = tl.load(column_starts + column, mask=lives, other=0)
    stop = tl.load(column_starts + column + 1, mask=lives, other=0)
    upper = values + image * stride_n + tl.cast(row, tl.int64) * stride_y
    lower = upper + tl.where(row + 1 < rows, 1, 0) * stride_y
    left = classes.to(OFFSET) * stride_c + column.to(OFFSET) * stride_x
    right = left + tl.where(column + 1 < columns, 1, 0) * stride_x
    grad_term, grad_both, grad_probs = read_grad(grad, classes, real, num_classes, OVERLAP)
    upper_left = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    upper_right = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    lower_left = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    lower_right = tl.zeros([BLOCK_C, BLOCK], DTYPE)
    for y in range(tl.load(row_starts + row), tl.load(row_starts + row + 1)):
        down = tl.load(row_shares + y)
        start, step = _read_line(upper, lower, left, right, down, real, lives, DTYPE)
        to_left = tl.zeros([BLOCK_C, BLOCK], DTYPE)
        to_right = tl.zeros([BLOCK_C, BLOCK], DTYPE)
        for k in range(tl.max(tl.max(stop - first, 1), 0)):
            x = first + k
            inside = x < stop
            across = tl.load(column_shares + x, mask=inside, other=0.0)
            places = image * target_n + tl.cast(y, tl.int64) * target_y + x.to(OFFSET) * target_x
            if not INDEX_PLANES:
                places = places + classes.to(OFFSET) * target_c
            truth, valid, index = read_truth(target, places, classes, real, inside, ignore_index, INDEX_PLANES)
            weight = read_weights(weights, classes, real, index, valid, num_classes, SOFTMAX, DTYPE)
            normalizer = 0.0
            if SOFTMAX:
                normalizer = tl.load(normalizers + (image * height + y) * width + x, mask=inside, other=0.0)
            gradient = tile_backward(
                start + across * step,
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
            to_left += (1.0 - across) * gradient
            to_right += across * gradient
        upper_left += (1.0 - down) * to_left
        upper_right += (1.0 - down) * to_right
        lower_left += down * to_left
        lower_right += down * to_right
    area = tl.cast(rows, tl.int64) * columns
    places = corners + (image * 4 * num_classes + classes) * area + tl.cast(row, tl.int64) * columns + column
    written = real & lives
    tl.store(places, upper_left, mask=written)
    tl.store(places + num_classes * area, upper_right, mask=written)
    tl.store(places + 2 * num_classes * area, lower_left, mask=written)
    tl.store(places + 3 * num_classes * area, lower_right, mask=written)
