"""What to say where no image belongs to a mask by its name: most often one of them has something before or behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from segkit.data.patterns import STEM, Pattern
from segkit.formats.nifti_slices import split_slice_stem
from segkit.inspection.coding import spread

# Names compared with each other, and the share of them that a pattern must bring together.
_MASKS, _IMAGES, _MOST = 6, 300, 0.5
_SEPARATORS = "_-. "


def unpaired_text(images: Path, masks: Path, image_names: Sequence[str], mask_names: Sequence[str]) -> str:
    """An error that names two files and, where there is one, the pattern that brings images and masks together."""
    text = (
        f"{masks}: no mask here belongs to an image in {images} by its name (there are the image {image_names[0]!r} "
        f"and the mask {mask_names[0]!r})."
    )
    found = guess_patterns(image_names, mask_names)
    if found is None:
        return f"{text} Say how they are named with --image-pattern and --mask-pattern, such as '{STEM}_mask'."
    options = zip(("--image-pattern", "--mask-pattern"), found, strict=True)
    return f"{text} Most would with {' '.join(f'{option} {p!r}' for option, p in options if p != STEM)}."


def guess_patterns(images: Collection[str], masks: Collection[str]) -> tuple[str, str] | None:
    """(image pattern, mask pattern) that bring most names together, or None."""
    images = sorted({split_slice_stem(name)[0] for name in images})
    masks = sorted({split_slice_stem(name)[0] for name in masks})
    some = spread(images, _IMAGES)
    guesses = {_patterns(max(some, key=lambda image: _shared(image, mask)[2]), mask) for mask in spread(masks, _MASKS)}
    pairs = {guess: _pairs(guess, images, masks) for guess in sorted(guesses)}
    best = max(pairs, key=pairs.__getitem__)
    return best if pairs[best] > _MOST * min(len(images), len(masks)) else None


def _shared(image: str, mask: str) -> tuple[int, int, int]:
    """Where the longest text that both names hold begins in each, and its length."""
    found = SequenceMatcher(None, image, mask, autojunk=False).find_longest_match()
    return found.a, found.b, found.size


def _patterns(image: str, mask: str) -> tuple[str, str]:
    """Patterns that give these two names one stem: what they share, without the separators around it."""
    a, _, size = _shared(image, mask)
    stem = image[a : a + size].strip(_SEPARATORS)
    if not stem:
        return STEM, STEM
    return image.replace(stem, STEM, 1), mask.replace(stem, STEM, 1)


def _pairs(guess: tuple[str, str], images: Sequence[str], masks: Sequence[str]) -> int:
    try:
        return len(Pattern(guess[0]).by_stem(images).keys() & Pattern(guess[1]).by_stem(masks).keys())
    except ValueError:  # of a name that holds braces
        return 0
