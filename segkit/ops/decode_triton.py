"""From logits to planes on CUDA in one pass; upsampled logits are mixed in registers, and never built.

A program takes a run of pixels of one line and walks through the classes, a few at a time. Bytes through memory, the
least there can be, with b bytes per logit and t per number of the result:

    decode_indices    N·H·W · (C·b + t), or N·C·h·w · b + N·H·W · t where upsampled
    decode_above      N·H·W · C·(b + t), or N·C·h·w · b + N·H·W · C·t where upsampled
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from segkit.ops.upsample import CoarseLogits
from segkit.ops.upsample_lines import line_tables

# Classes at a time, all in one thread, and most pixels of a program.
_CLASSES, _PIXELS = 8, 256


def decode_indices(logits: CoarseLogits, dtype: torch.dtype, limit: float | None, none_index: int) -> Tensor:
    """As `segkit.ops.decode.decode_indices`."""
    n, _, height, width = logits.shape
    result = torch.empty((n, 1, height, width), dtype=dtype, device=logits.values.device)
    # A number would arrive in float32.
    limits = None if limit is None else torch.full((1,), limit, dtype=_wide(logits), device=result.device)
    pixels = min(_PIXELS, triton.next_power_of_2(width))
    with torch.cuda.device_of(result):
        _decode_indices[(n * height * triton.cdiv(width, pixels),)](
            *_inputs(logits), result, limits, none_index, **_constants(logits, pixels)
        )
    return result


def decode_above(logits: CoarseLogits, limits: Sequence[float], dtype: torch.dtype) -> Tensor:
    """As `segkit.ops.decode.decode_above`."""
    n, c, height, width = logits.shape
    result = torch.empty((n, c, height, width), dtype=dtype, device=logits.values.device)
    constants = _constants(logits, min(_PIXELS, triton.next_power_of_2(width)))
    runs = triton.cdiv(c, constants["CLASSES"]) * triton.cdiv(width, constants["PIXELS"])
    with torch.cuda.device_of(result):
        _decode_above[(n * height * runs,)](
            *_inputs(logits), result, _on_device(tuple(limits), _wide(logits), result.device), **constants
        )
    return result


def _wide(logits: CoarseLogits) -> torch.dtype:
    return torch.float64 if logits.values.dtype == torch.float64 else torch.float32


def _inputs(logits: CoarseLogits) -> list[Tensor | int | None]:
    """Parameters of both kernels up to `width`."""
    values = logits.values
    tables: list[Tensor | None] = [None] * 4
    if logits.upsampled:
        rows, columns = line_tables(logits, _wide(logits))
        tables = [rows.cells, rows.shares, columns.cells, columns.shares]
    return [values, *tables, *values.stride(), *values.shape[1:], *logits.shape[2:]]


def _constants(logits: CoarseLogits, pixels: int) -> dict[str, int | tl.dtype]:
    classes = min(_CLASSES, triton.next_power_of_2(logits.shape[1]))
    dtype = tl.float64 if _wide(logits) == torch.float64 else tl.float32
    return {"DTYPE": dtype, "CLASSES": classes, "PIXELS": pixels, "num_warps": max(1, pixels // 64)}


# Kept: a copy to the device waits for it.
@lru_cache(maxsize=64)
def _on_device(limits: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(limits, dtype=dtype, device=device)


@triton.jit
def _read(
    values,
    row_cells,
    row_shares,
    column_cells,
    column_shares,
    stride_c,
    stride_y,
    stride_x,
    num_classes,
    rows,
    columns,
    classes,
    y,
    x,
    inside,
    DTYPE: tl.constexpr,
):
    """(classes, pixels) logits of one line of an image that starts at `values`, -infinity where there are none."""
    places = values + classes.to(tl.int64) * stride_c
    there = (classes < num_classes) & inside
    if row_cells is None:
        places = places + y * stride_y + x.to(tl.int64) * stride_x
        return tl.load(places, mask=there, other=-float("inf")).to(DTYPE)
    else:
        row = tl.load(row_cells + y)
        column = tl.load(column_cells + x, mask=inside, other=0)
        down = tl.load(row_shares + y)
        across = tl.load(column_shares + x, mask=inside, other=0.0)
        below = tl.where(row + 1 < rows, 1, 0) * stride_y
        right = tl.where(column + 1 < columns, 1, 0) * stride_x
        places = places + row.to(tl.int64) * stride_y + column.to(tl.int64) * stride_x
        a = tl.load(places, mask=there, other=0.0).to(DTYPE)
        b = tl.load(places + right, mask=there, other=0.0).to(DTYPE)
        upper = a + across * (b - a)
        a = tl.load(places + below, mask=there, other=0.0).to(DTYPE)
        b = tl.load(places + below + right, mask=there, other=0.0).to(DTYPE)
        return tl.where(there, upper + down * (a + across * (b - a) - upper), -float("inf"))


# Unknown to be 1, the stride between pixels leaves all classes of a pixel to one thread: none has to wait for another.
@triton.jit(do_not_specialize=["stride_x"])
def _decode_indices(
    values,
    row_cells,
    row_shares,
    column_cells,
    column_shares,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    num_classes,
    rows,
    columns,
    height,
    width,
    result,
    limit,
    none_index,
    DTYPE: tl.constexpr,
    CLASSES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    runs = tl.cdiv(width, PIXELS)
    line = tl.cast(tl.program_id(0) // runs, tl.int64)
    x = (tl.program_id(0) % runs) * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = x < width
    start = values + (line // height) * stride_n
    best = tl.full([1, PIXELS], -float("inf"), DTYPE)
    index = tl.zeros([1, PIXELS], tl.int32)
    first_nan = tl.full([1, PIXELS], 0, tl.int32) + num_classes
    for first in range(0, num_classes, CLASSES):
        classes = first + tl.arange(0, CLASSES)[:, None]
        z = _read(
            start,
            row_cells,
            row_shares,
            column_cells,
            column_shares,
            stride_c,
            stride_y,
            stride_x,
            num_classes,
            rows,
            columns,
            classes,
            line % height,
            x,
            inside,
            DTYPE,
        )
        strange = z != z
        first_nan = tl.minimum(first_nan, tl.min(tl.where(strange, classes, num_classes), 0, keep_dims=True))
        z = tl.where(strange, -float("inf"), z)
        top = tl.max(z, 0, keep_dims=True)
        index = tl.where(top > best, tl.min(tl.where(z == top, classes, num_classes), 0, keep_dims=True), index)
        best = tl.maximum(best, top)
    # NaN is higher than all, as torch has it, and above no limit.
    index = tl.where(first_nan < num_classes, first_nan, index)
    if limit is not None:
        index = tl.where((best > tl.load(limit)) & (first_nan == num_classes), index, none_index)
    tl.store(result + line * width + x, index, mask=inside)


@triton.jit
def _decode_above(
    values,
    row_cells,
    row_shares,
    column_cells,
    column_shares,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    num_classes,
    rows,
    columns,
    height,
    width,
    result,
    limits,
    DTYPE: tl.constexpr,
    CLASSES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    runs = tl.cdiv(width, PIXELS)
    parts = tl.cdiv(num_classes, CLASSES)
    line = tl.cast(tl.program_id(0) // (runs * parts), tl.int64)
    x = (tl.program_id(0) % runs) * PIXELS + tl.arange(0, PIXELS)[None, :]
    classes = (tl.program_id(0) // runs % parts) * CLASSES + tl.arange(0, CLASSES)[:, None]
    inside = x < width
    z = _read(
        values + (line // height) * stride_n,
        row_cells,
        row_shares,
        column_cells,
        column_shares,
        stride_c,
        stride_y,
        stride_x,
        num_classes,
        rows,
        columns,
        classes,
        line % height,
        x,
        inside,
        DTYPE,
    )
    above = z > tl.load(limits + classes, mask=classes < num_classes, other=0.0)
    places = result + ((line // height * num_classes + classes) * height + line % height) * width + x
    tl.store(places, tl.where(above, 1, 0), mask=(classes < num_classes) & inside)
