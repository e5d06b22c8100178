"""Views of an image for test-time augmentation, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from segkit.suggest import closest

# Each word stands for the image as it is and these views of it: (quarter turns, mirrored first, scale).
_WORDS: dict[str, tuple[tuple[int, bool, float], ...]] = {
    "flips": ((0, True, 1.0), (2, True, 1.0), (2, False, 1.0)),
    "rotations": ((1, False, 1.0), (2, False, 1.0), (3, False, 1.0)),
    "scales": ((0, False, 0.75), (0, False, 1.25)),
    "hflip": ((0, True, 1.0),),
    "vflip": ((2, True, 1.0),),
    "rot90": ((1, False, 1.0),),
    "rot180": ((2, False, 1.0),),
    "rot270": ((3, False, 1.0),),
}
_SCALES = (0.25, 4.0)


@dataclass(frozen=True)
class View:
    """An image seen in another way: mirrored left to right, then turned, and scaled.

    Attributes:
        turns: quarter turns, counterclockwise.
    """

    turns: int = 0
    mirrored: bool = False
    scale: float = 1.0

    def after(self, other: View) -> View:
        """The view of a view."""
        turns = self.turns + (-other.turns if self.mirrored else other.turns)
        return View(turns % 4, self.mirrored != other.mirrored, self.scale * other.scale)

    def of(self, images: Tensor) -> Tensor:
        """(..., H, W) turned and mirrored, not scaled."""
        return torch.rot90(images.flip(-1) if self.mirrored else images, self.turns, (-2, -1))

    def undo(self, images: Tensor) -> Tensor:
        """(..., H, W) of `of` as it was."""
        turned = torch.rot90(images, -self.turns, (-2, -1))
        return turned.flip(-1) if self.mirrored else turned


def parse_views(names: str | Iterable[str]) -> tuple[View, ...]:
    """The views that names stand for, the image as it is first, none twice.

    Args:
        names: words, or one text with commas: `flips` (left to right, upside down, both), `rotations` (three quarter
            turns), `scales` (0.75 and 1.25), or one view each: `hflip`, `vflip`, `rot90`, `rot180`, `rot270`,
            `scale=0.75`. Every word is combined with every other, all scales counting as one word: `hflip,scale=0.5`
            are four views, `flips,rotations` the eight of a square.

    Raises:
        ValueError: no word, or one that is not known.
    """
    words = [word.strip() for word in (names.split(",") if isinstance(names, str) else names)]
    if not words or not all(words):
        raise ValueError(f"tta is {names!r}: expected words such as `flips` or `hflip,scale=0.75`.")
    scales, choices = [View()], []
    for word in dict.fromkeys(words):
        views = _views_of(word)
        if views[0].scale != 1.0:
            scales += views
        else:
            choices.append([View(), *views])
    found: dict[View, None] = {}
    for combined in product(scales, *choices):
        view = View()
        for part in combined:
            view = part.after(view)
        found[view] = None
    return tuple(found)


def _views_of(word: str) -> list[View]:
    if word.startswith("scale="):
        try:
            scale = float(word.removeprefix("scale="))
        except ValueError:
            scale = 0.0
        if not _SCALES[0] <= scale <= _SCALES[1] or scale == 1.0:
            raise ValueError(f"tta: {word!r}: expected a scale from {_SCALES[0]} to {_SCALES[1]} other than 1.")
        return [View(scale=scale)]
    if word not in _WORDS:
        raise ValueError(f"tta: unknown view {word!r}. {closest(word, [*_WORDS, 'scale=0.75'])}")
    return [View(*view) for view in _WORDS[word]]
