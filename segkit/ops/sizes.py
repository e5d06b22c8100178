"""Sizes of images: what a `resize` option asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from segkit.formats.limits import max_pixels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Spacing:
    """A size in the world: rows and columns so far apart, however many of them an image then has.

    Attributes:
        row_mm: distance of neighbouring rows.
        column_mm: distance of neighbouring columns.
    """

    row_mm: float
    column_mm: float

    def __post_init__(self) -> None:
        if not all(_is_distance(mm) for mm in (self.row_mm, self.column_mm)):
            raise ValueError(f"a spacing of {self.row_mm} x {self.column_mm} mm: expected two numbers above 0.")


# None keeps the stored size; a number is the length of the longer side; or [height, width]; or a spacing.
Resize = int | Sequence[int] | Spacing | None


def fit_size(size_hw: tuple[int, int], resize: Resize, spacing_mm: Sequence[float] | None = None) -> tuple[int, int]:
    """(height, width) that an image of `size_hw` gets.

    Args:
        resize: None keeps the size; [height, width] gives exactly that; a number is the length of the longer
            side, and the aspect is kept; a `Spacing` keeps the extent in mm.
        spacing_mm: (row, column) distances of the image, which only a `Spacing` asks for.

    Raises:
        ValueError: any other `resize`, or an image whose spacing is not known or cannot be true.
    """
    if resize is None:
        return size_hw
    if isinstance(resize, Spacing):
        return _size_at(resize, size_hw, spacing_mm)
    if isinstance(resize, int) and not isinstance(resize, bool) and resize > 0:
        longest = max(size_hw)
        return max(1, scaled(size_hw[0], resize, longest)), max(1, scaled(size_hw[1], resize, longest))
    if isinstance(resize, Sequence) and not isinstance(resize, str) and len(resize) == 2:
        height, width = resize
        if all(isinstance(n, int) and n > 0 for n in resize):
            return height, width
    raise ValueError(f"resize is {resize!r}: expected [height, width] or the length of the longer side, in pixels.")


def scaled(side: int, resize: int, longest: int) -> int:
    """`side * resize / longest`, rounded, halves to the even number.

    In whole numbers, which the graph of an exported model computes as well: floats would see some halves as less.
    """
    part = 2 * longest
    rounded, rest = (2 * side * resize + longest) // part, (2 * side * resize + longest) % part
    half = 1 - (rest + part - 1) // part  # 1 where nothing is left, else 0
    return rounded - half * (rounded % 2)


def resample(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N, B, h, w) images of the same dtype, uint8 or float: linear, from more pixels the more it shrinks."""
    import torch.nn.functional as F

    return F.interpolate(images, size_hw, mode="bilinear", align_corners=False, antialias=True)


def is_one_size(resize: Resize) -> bool:
    """Whether all images become one size, whatever size they have."""
    return isinstance(resize, Sequence)


def resize_to_json(resize: Resize) -> Any:
    """JSON-ready form, which `resize_from_json` reads."""
    return asdict(resize) if isinstance(resize, Spacing) else resize


def resize_from_json(value: Any) -> Resize:
    """What `resize_to_json` wrote."""
    return Spacing(**value) if isinstance(value, dict) else value


def _size_at(target: Spacing, size_hw: tuple[int, int], spacing_mm: Sequence[float] | None) -> tuple[int, int]:
    wanted = f"{target.row_mm:g} x {target.column_mm:g} mm per pixel are asked for"
    if spacing_mm is None:
        raise ValueError(
            f"{wanted}, but the image tells no spacing, as only volumes do. Take `data.resize` instead of "
            "`data.spacing_mm`, or give the spacing where you call `predict`."
        )
    if not all(_is_distance(mm) for mm in spacing_mm):
        raise ValueError(f"{wanted}, but the header of the image says {spacing_mm} mm: mend the header.")
    height, width = (
        max(1, round(side * old / new))
        for side, old, new in zip(size_hw, spacing_mm, (target.row_mm, target.column_mm), strict=True)
    )
    if height * width > max_pixels():
        raise ValueError(
            f"{wanted}: an image of {size_hw[0]}x{size_hw[1]} pixels of {spacing_mm} mm would become {height}x{width}. "
            "Mend its header, or ask for a coarser spacing."
        )
    return height, width


def _is_distance(mm: float) -> bool:
    return math.isfinite(mm) and mm > 0
