"""Pictures for people: classes in colour over an image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from segkit.formats.classes import class_colors
from segkit.formats.files import write_whole
from segkit.formats.mask_format import BACKGROUND, MaskFormat

_OPACITY = 0.5


def draw_overlay(image: np.ndarray, planes: np.ndarray, format: MaskFormat, opacity: float = _OPACITY) -> np.ndarray:
    """(H, W, 3) uint8 RGB: each class tinted in its colour with a solid outline; overlapping classes mix.

    Args:
        image: (H, W, B) as stored.
        planes: (H, W, P); ignored pixels and a class named `background` are not painted.
        opacity: of the tint, 0-1.
    """
    base = to_rgb(image).astype(np.float32)
    target = torch.from_numpy(planes.transpose(2, 0, 1).astype(np.int32))[None]
    maps = format.expand(target)[0].numpy()
    tint, count = np.zeros_like(base), np.zeros(base.shape[:2], np.float32)
    painted_classes = [
        (color, held)
        for name, color, held in zip(format.names, class_colors(format.classes).values(), maps, strict=True)
        if name != BACKGROUND
    ]
    for color, held in painted_classes:
        tint[held] += color
        count[held] += 1
    painted = count > 0
    base[painted] = (1 - opacity) * base[painted] + opacity * tint[painted] / count[painted][:, None]
    picture = base.round().astype(np.uint8)
    for color, held in painted_classes:
        contours, _ = cv2.findContours(held.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, color, 1)
    return picture


def to_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: 8-bit colours as they are, else the first one or three bands between their 1st and 99th
    percentile."""
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(bands)
    low, high = np.percentile(bands, (1, 99), axis=(0, 1))
    scaled = (bands.astype(np.float32) - low) / np.maximum(high - low, 1e-6)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def side_by_side(*pictures: np.ndarray, gap: int = 4) -> np.ndarray:
    """Pictures of one height in a row, white between them."""
    white = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(parts[:-1], axis=1)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) RGB picture as PNG."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, path
    write_whole(path, data.tobytes())
