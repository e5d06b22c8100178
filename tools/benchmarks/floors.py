"""What no kernel can be faster than: the bytes that must move, at the speed at which this device copies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmarks.rows import Entry, Row

COPY = "one copy of the logits"
UPSAMPLED_COPY = "one copy of the upsampled logits"
FLOOR = "memory-bandwidth floor of segkit's kernels"


@dataclass(frozen=True)
class Floor:
    """Traffic that cannot be avoided, beside an entry that tells the bandwidth.

    Attributes:
        bytes: the least that segkit's kernels move.
        copy: name of the entry that copies.
        copied_bytes: what it copies; each byte is read and written.
    """

    bytes: int
    copy: str
    copied_bytes: int


def with_floor(row: Row, floor: Floor) -> Row:
    """The row, in ms, with an entry more: the floor at the bandwidth of its own copy, round by round."""
    (copying,) = [entry for entry in row.entries if entry.name == floor.copy]
    share = floor.bytes / (2 * floor.copied_bytes)
    row.entries.append(Entry(FLOOR, [share * sample for sample in copying.samples]))
    return row.relate()


def plain_bytes(logits: Tensor, planes: Tensor, *, softmax: bool) -> int:
    """Least bytes of forward and backward; `segkit.ops.loss_sums_triton` says what is read and written.

    Args:
        logits: (N, C, H, W).
        planes: (N, P, H, W).
        softmax: whether log Σ exp, in float32, is handed from one to the other.
    """
    read_and_written = 3 * logits.numel() * logits.element_size()
    return read_and_written + _planes_and_normalizers(planes, softmax)


def upsampled_bytes(coarse: Tensor, planes: Tensor, *, softmax: bool) -> int:
    """The same of logits that are upsampled inside the kernels; see `segkit.ops.loss_cells_triton`.

    Args:
        coarse: (N, C, h, w).
        planes: (N, P, H, W).
    """
    # Backwards, four corners in float32 are written and read.
    return coarse.numel() * (3 * coarse.element_size() + 32) + _planes_and_normalizers(planes, softmax)


def _planes_and_normalizers(planes: Tensor, softmax: bool) -> int:
    n, _, h, w = planes.shape
    return 2 * (planes.numel() * planes.element_size() + (4 * n * h * w if softmax else 0))
