"""Which classes are meant, and where planes hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.suggest import closest


def parse_members(classes: Any, format: MaskFormat) -> list[int]:
    """Class numbers from names; None is all but `background`, where there are others."""
    if classes is None:
        return [n for n, name in enumerate(format.names) if name != BACKGROUND or format.num_classes == 1]
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise ValueError(f"classes is {classes!r}: expected a list of class names.")
    names = [str(name) for name in classes]
    for name in names:
        if name not in format.names:
            raise ValueError(f"classes names {name!r}, which is no class. {closest(name, format.names)}")
    if not names:
        raise ValueError("classes is empty: name at least one class, or leave it out for all but `background`.")
    return [n for n, name in enumerate(format.names) if name in names]


def foreground(format: MaskFormat) -> list[int]:
    """Numbers of all classes but `background`.

    Raises:
        ValueError: one class holds at every pixel, and none is `background`: everything would be foreground.
    """
    members = parse_members(None, format)
    if len(members) == format.num_classes and not format.classes_overlap:
        raise ValueError(
            f"no class of {format.describe()} is named `{BACKGROUND}`, so every pixel is foreground: list the classes "
            "that are meant."
        )
    return members


def class_marks(format: MaskFormat) -> list[tuple[int, int]]:
    """(plane, value) of each class: it holds where that plane has that value."""
    return [(n, 1) if format.planes_are_bits else (0, n) for n in range(format.num_classes)]


def present_classes(target: Tensor, format: MaskFormat) -> Tensor:
    """(N, C) bool, whether a class holds anywhere in an image of (N, P, H, W) planes."""
    if format.planes_are_bits:
        return (target == 1).flatten(2).any(2)
    # Class by class in one pass, not C maps of the image: writes of one and the same value come in any order.
    found = torch.zeros(len(target), format.ignore_index + 1, dtype=torch.bool, device=target.device)
    return found.scatter_(1, target.flatten(1).long(), True)[:, : format.num_classes]


def holds_any(target: Tensor, chosen: Tensor, format: MaskFormat) -> Tensor:
    """Where any of the classes holds that are chosen in an image.

    Args:
        target: (N, P, H, W) planes.
        chosen: (N, C) bool.

    Returns:
        (N, 1, H, W) bool, False where nothing is known.
    """
    if format.planes_are_bits:
        return ((target == 1) & chosen[:, :, None, None]).any(1, keepdim=True)
    table = torch.zeros(len(target), format.ignore_index + 1, dtype=torch.bool, device=target.device)
    table[:, : format.num_classes] = chosen
    return table.gather(1, target.flatten(1).long()).view(target.shape)
