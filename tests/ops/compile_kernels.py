"""Compiles the kernels for GPUs, as a script without TRITON_INTERPRET: neither a GPU nor a driver is needed for it.

The interpreter takes what no GPU does, such as float conditions, shapes that do not match, or numpy's type promotion.
"""

from __future__ import annotations

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from segkit.ops import counts_triton, decode_triton, loss_cells_triton, loss_sums_triton

SUMS = ["row_shares", "column_shares", "weights", "partial", "normalizers", "grad", "corners"]
POINTERS = {"target": "*u8", "row_starts": "*i32", "column_starts": "*i32"}


def compile_kernel(kernel, capability: int, pointers: dict[str, str], **constants) -> None:
    """Raises what Triton raises."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()})
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm


def loss_kernels(capability: int) -> None:
    options = {"TERM": True, "OVERLAP": True, "BLOCK_C": 4, "BLOCK_P": 32, "BLOCK": 32}
    for softmax, index_planes, gamma, smoothing, wide in [
        (True, True, 0.0, 0.1, False),
        (True, True, 0.5, 0.0, True),
        (False, True, 2.0, 0.0, False),
        (False, False, 0.0, 0.1, False),
    ]:
        options.update(SOFTMAX=softmax, INDEX_PLANES=index_planes, GAMMA=gamma, SMOOTHING=smoothing)
        options.update(DTYPE=tl.float64 if wide else tl.float32, OFFSET=tl.int64 if wide else tl.int32)
        pointers = {**POINTERS, **dict.fromkeys(["values", "result"], "*fp64" if wide else "*bf16")}
        pointers.update(dict.fromkeys(SUMS, "*fp64" if wide else "*fp32"))
        for kernels in (loss_sums_triton, loss_cells_triton):
            for kernel in (kernels._forward, kernels._backward):
                compile_kernel(
                    kernel, capability, pointers, **{n: options[n] for n in kernel.arg_names if n in options}
                )


def decode_kernels(capability: int) -> None:
    tables = {"row_cells": "*i32", "column_cells": "*i32", "row_shares": "*fp32", "column_shares": "*fp32"}
    options = {"DTYPE": tl.float32, "CLASSES": 4, "PIXELS": 32}
    for upsampled in (False, True):
        pointers = {"values": "*bf16", "result": "*u8", "limit": "*fp32", "limits": "*fp32", **tables}
        absent = {} if upsampled else dict.fromkeys(tables)
        for kernel in (decode_triton._decode_indices, decode_triton._decode_above):
            compile_kernel(kernel, capability, pointers, **options, **absent)


def count_kernels(capability: int) -> None:
    pointers = {"pred": "*u8", "target": "*u8", "found": "*i32"}
    compile_kernel(counts_triton._count_indices, capability, pointers, PIXELS=1024, BINS=256)
    compile_kernel(counts_triton._count_binary, capability, pointers, PIXELS=1024)


if __name__ == "__main__":
    loss_kernels(int(sys.argv[1]))
    decode_kernels(int(sys.argv[1]))
    count_kernels(int(sys.argv[1]))
