"""Small pictures of images and of the labels over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from segkit.data.images import resize_image, resize_planes
from segkit.formats.classes import RGB, MaskClass, default_color
from segkit.formats.mask_format import MaskFormat
from segkit.inference.overlay import draw_overlay, to_rgb
from segkit.ops.sizes import fit_size

SIDE = 192  # pixels of the longer side
# A picture is averaged from at most so many pixels per pixel and side: the rest of a large image is not looked at.
_SAMPLES = 4
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """One sample as a small picture.

    Attributes:
        stem: name of the sample.
        part: train, val, test or any other name.
        image: WebP or JPEG, or nothing where the image cannot be read.
        overlay: the same picture with its labels in colour, or nothing.
        faults: what is wrong with the sample, in a few words each.
        classes: names of the classes that occur in it.
    """

    stem: str
    part: str
    image: bytes
    overlay: bytes = b""
    faults: Sequence[str] = field(default_factory=tuple)
    classes: Sequence[str] = field(default_factory=tuple)


def make_thumbnail(
    stem: str,
    part: str,
    image: np.ndarray,
    class_masks: Mapping[str, np.ndarray] | None = None,
    colors: Mapping[str, RGB] | None = None,
    faults: Sequence[str] = (),
) -> Thumbnail:
    """A sample at `SIDE` pixels, its labels in colour.

    Args:
        image: (H, W, B) of any depth: 8-bit colours stay as they are, all else is stretched between percentiles.
        class_masks: (H, W) bool of each class by name. A mask of another size than the image is stretched over it.
        colors: of each class, from `label_colors`; by default the place in `class_masks` decides.
    """
    class_masks = class_masks or {}
    colors = colors or label_colors(class_masks)
    picture = to_rgb(_shrink(image))
    size_hw = picture.shape[:2]
    held = {name: mask for name, mask in class_masks.items() if mask.any()}
    overlay = picture
    if held:
        planes = np.stack([resize_planes(mask[..., None], size_hw)[..., 0] for mask in held.values()], axis=2)
        overlay = draw_overlay(picture, planes, MaskFormat.multilabel([MaskClass(n, colors[n]) for n in held]))
    return Thumbnail(stem, part, _encode(picture), _encode(overlay), tuple(faults), tuple(held))


def label_colors(names: Iterable[str]) -> dict[str, RGB]:
    """Name -> colour by its place: the same in thumbnails as in a table of the same names."""
    return {name: default_color(place, name) for place, name in enumerate(dict.fromkeys(names))}


def _size(size_hw: Sequence[int]) -> tuple[int, int]:
    """Images that are much smaller grow by a whole number, so that their pixels stay sharp."""
    height, width = size_hw
    if max(height, width) > SIDE:
        return fit_size((height, width), SIDE)
    times = SIDE // max(height, width)
    return height * times, width * times


def _shrink(image: np.ndarray) -> np.ndarray:
    size_hw = _size(image.shape[:2])
    rows, columns = (max(1, old // (_SAMPLES * new)) for old, new in zip(image.shape[:2], size_hw, strict=True))
    # More bands than a picture shows are left before they are averaged.
    picked = image[::rows, ::columns, : 3 if image.shape[2] >= 3 else 1]
    return resize_planes(picked, size_hw) if size_hw[0] > image.shape[0] else resize_image(picked, size_hw)


def _encode(picture: np.ndarray) -> bytes:
    done, data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    assert done, picture.shape
    return data.tobytes()
