"""Which samples of a data set are shown as pictures, and making those pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segkit.formats.classes import RGB
from segkit.inspection.thumbnails import Thumbnail, make_thumbnail


@dataclass(frozen=True)
class Shown:
    """A sample that may be shown.

    Attributes:
        part: train, val, test or any other name.
        stem: name of the sample.
        read: gives the (H, W, B) image and (H, W) bool masks by class name; a ValueError where it cannot.
        faults: what is wrong with the sample, in a few words each.
        wanted: shown before others, as one of a pair of duplicates is. Samples with faults are too.
    """

    part: str
    stem: str
    read: Callable[[], tuple[np.ndarray, Mapping[str, np.ndarray]]]
    faults: Sequence[str] = ()
    wanted: bool = False


def make_gallery(
    samples: Sequence[Shown], colors: Mapping[str, RGB] | None = None, limit: int = 300, workers: int = 2
) -> list[Thumbnail]:
    """Thumbnails of at most `limit` samples, in their order; one that cannot be read has no picture.

    Args:
        colors: of each class, from `label_colors`.
        workers: threads that read and draw.
    """

    def draw(sample: Shown) -> Thumbnail:
        try:
            image, masks = sample.read()
        except ValueError:
            return Thumbnail(sample.stem, sample.part, b"", faults=tuple(sample.faults) or ("cannot be read",))
        return make_thumbnail(sample.stem, sample.part, image, masks, colors, sample.faults)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(draw, choose(samples, limit)))


def choose(samples: Sequence[Shown], limit: int) -> list[Shown]:
    """At most `limit` samples: those with faults or wanted first, then others evenly from all over the data."""
    urgent = [n for n, sample in enumerate(samples) if sample.faults or sample.wanted]
    # Some room stays for samples as they should be.
    first = _evenly(urgent, max(limit - len(samples) + len(urgent), 2 * limit // 3))
    taken = set(urgent)
    others = [n for n in range(len(samples)) if n not in taken]
    return [samples[n] for n in sorted([*first, *_evenly(others, limit - len(first))])]


def _evenly(numbers: Sequence[int], count: int) -> list[int]:
    """`count` of the numbers at equal distances, or all where they are no more."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[place * len(numbers) // count] for place in range(count)]
