"""One pass over all files of a data set: every image read and checked, every mask read and counted."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segkit.data.images import ImageRef
from segkit.data.layouts import Part
from segkit.data.pairing import told_apart
from segkit.data.patterns import STEM, Pattern
from segkit.data.reading import ImageReading
from segkit.data.splits import match_stems
from segkit.inspection.stored import Key, MaskCounts, MaskReader
from segkit.inspection.unpaired import unpaired_text

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

# Rows and columns that are looked at to tell gray from colour.
_LINES = 32
# Samples that a thread takes at once.
_GROUP = 4
# Work handed to threads before its results are taken: what is decoded and waits is bounded by this.
_AHEAD = 4


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Attributes:
        file: where.
        text: what was found, what was expected and the way out.
        sample: (part, stem) that it spoils, or None where no sample is to be left out for it.
    """

    file: str
    text: str
    sample: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        # Errors of readers name the file themselves.
        object.__setattr__(self, "text", self.text.removeprefix(f"{self.file.partition(' (')[0]}: "))

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one image.

    Attributes:
        colour: whether its bands differ.
        lowest: its smallest value, where it is not of 8 bits.
    """

    size_hw: tuple[int, int]
    bands: int
    dtype: str
    colour: bool
    lowest: float | None = None


@dataclass(frozen=True)
class Pair:
    """Where image and mask of one sample lie.

    Attributes:
        masks: root of the masks.
        mask: name of the mask below it.
    """

    part: str
    stem: str
    image: ImageRef
    masks: Path
    mask: str

    @property
    def sample(self) -> tuple[str, str]:
        """(part, stem): two parts may hold samples of one name."""
        return self.part, self.stem


@dataclass(frozen=True)
class Seen:
    """One sample that was read; what could not be read is None or empty.

    Attributes:
        mask_hw: size of the mask.
        kind: how the mask is stored.
        values: what the mask holds.
        filled: the value or class that holds every pixel of it, if one does.
    """

    pair: Pair
    image: ImageFacts | None
    mask_hw: tuple[int, int] | None = None
    kind: str = ""
    values: frozenset[Key] = frozenset()
    filled: Key | None = None


@dataclass
class Survey:
    """Sums over a data set.

    Attributes:
        seen: samples in order.
        pixels: of each value or class.
        images: that hold the value or class.
        pixels_around: of all images that hold it.
        labels: pixels with no class, one, two or more, where classes may overlap.
        both: pixels that two classes share.
        total: pixels of all masks.
        parts: images of each part, paired or not.
        looks: what `look` returned, by part and stem.
        faults: found while reading.
    """

    seen: list[Seen] = field(default_factory=list)
    pixels: Counter[Key] = field(default_factory=Counter)
    images: Counter[Key] = field(default_factory=Counter)
    pixels_around: Counter[Key] = field(default_factory=Counter)
    labels: list[int] = field(default_factory=lambda: [0, 0, 0])
    both: Counter[tuple[Key, Key]] = field(default_factory=Counter)
    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    looks: dict[tuple[str, str], Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def two_whites(self) -> bool:
        """Whether some masks hold 0 and 255, others 0 and 1, and none both 1 and 255: two ways to mark one class."""
        return set(self.pixels) == {0, 1, 255} and not any({1, 255} <= seen.values for seen in self.seen)

    def add(self, seen: Seen, counts: MaskCounts | None) -> None:
        """Take in one sample."""
        self.seen.append(seen)
        if counts is None:
            return
        size = counts.size_hw[0] * counts.size_hw[1]
        self.total += size
        self.pixels.update(counts.pixels)
        self.images.update(counts.pixels.keys())
        for key in counts.pixels:
            self.pixels_around[key] += size
        self.both.update(counts.both)
        if counts.labels is not None:
            self.labels = [a + b for a, b in zip(self.labels, counts.labels, strict=True)]


def take_survey(
    parts: dict[str, Part],
    reader: MaskReader,
    reading: ImageReading = ImageReading(),
    workers: int | None = None,
    progress: Progress | None = None,
    look: Callable[[np.ndarray], Any] | None = None,
    first_images: Mapping[str, ImageRef] | None = None,
) -> Survey:
    """Read every sample of every part.

    Args:
        workers: threads; default one per core, at most 8.
        progress: called with (samples read, samples in all).
        look: called with every image by the thread that read it; what it returns is kept.
        first_images: of the first part, by stem, where they were found already.
    """
    started = time.perf_counter()
    survey = Survey()
    pairs: list[Pair] = []
    for number, (name, part) in enumerate(parts.items()):
        refs = first_images if number == 0 else None
        pairs += _pair_up(name, part, reader, reading, survey, refs)

    def read(pair: Pair) -> tuple[ImageFacts | str, MaskCounts | str, Any]:
        image = _attempt(lambda: reading.read(pair.image))
        counts = _attempt(lambda: reader.count(pair.masks, pair.mask, pair.image.path))
        if isinstance(image, str):
            return image, counts, None
        return _facts(image), counts, None if look is None else look(image)

    def read_all(some: list[Pair]) -> list[tuple[ImageFacts | str, MaskCounts | str, Any]]:
        return [read(pair) for pair in some]

    # Several at once: threads wake each other less often.
    groups = [pairs[start : start + _GROUP] for start in range(0, len(pairs), _GROUP)]
    done = 0
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for some, found in in_order(pool, read_all, groups):
            for pair, (facts, counts, looked) in zip(some, found, strict=True):
                _merge(survey, pair, facts, counts, reader)
                if looked is not None:
                    survey.looks[pair.sample] = looked
                done += 1
                if progress is not None:
                    progress(done, len(pairs))
    survey.seconds = time.perf_counter() - started
    return survey


def in_order(
    pool: ThreadPoolExecutor, call: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, result) in the order of `items`; only a few results wait at any time."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) >= _AHEAD * pool._max_workers:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        for _, result in waiting:
            result.cancel()


def mask_file(reader: MaskReader, masks: Path, mask: str) -> str:
    """The first file of a mask, to name in a fault."""
    if masks.is_file():
        return f"{masks} ({mask})"  # of all images
    files = reader.files(masks, mask)
    return str(files[0]) if files else str(masks / mask)


def _pair_up(
    name: str,
    part: Part,
    reader: MaskReader,
    reading: ImageReading,
    survey: Survey,
    refs: Mapping[str, ImageRef] | None = None,
) -> list[Pair]:
    """Samples with image and mask; what has only one of them is a fault."""
    named = reading.named(part.image_pattern, part.bands)
    pattern = Pattern(part.mask_pattern)
    refs = dict(named.find(part.images) if refs is None else refs)
    masks = pattern.by_stem(reader.stems(part.masks))
    if part.images.resolve() == part.masks.resolve():
        refs, masks = told_apart(refs, masks, named.files, pattern)
        both = next(
            (stem for stem in refs if stem in masks and _is_own_mask(refs[stem], part, masks[stem], reader)), None
        )
        if both is not None:
            raise ValueError(
                f"{refs[both]}: lies in the folder of images and in that of masks, which are one. Say how they are "
                f"told apart with --image-pattern and --mask-pattern, such as '{STEM}_mask'."
            )
    wanted = list(refs) if part.stems is None else match_stems(part.stems, refs, part.images)
    survey.parts[name] = len(wanted)
    if not refs:
        raise ValueError(f"{part.images}: no images here{_named(part)}. The masks are in {part.masks}.")
    if wanted and masks and not any(stem in masks for stem in wanted):
        raise ValueError(unpaired_text(part.images, part.masks, wanted, list(masks.values())))
    for stem in wanted:
        if stem not in masks:
            survey.faults.append(Fault(str(refs[stem]), f"an image without a mask in {part.masks}.", (name, stem)))
    # A list says which samples are meant; masks of others may lie beside them.
    for stem in masks if part.stems is None else ():
        if stem not in refs:
            text = f"a mask without an image in {part.images}."
            survey.faults.append(Fault(mask_file(reader, part.masks, masks[stem]), text, (name, stem)))
    return [Pair(name, stem, refs[stem], part.masks, masks[stem]) for stem in wanted if stem in masks]


def _is_own_mask(image: ImageRef, part: Part, mask: str, reader: MaskReader) -> bool:
    return image.path in reader.files(part.masks, mask)


def _named(part: Part) -> str:
    return "" if part.image_pattern == STEM else f" whose names match {part.image_pattern!r}"


def _merge(survey: Survey, pair: Pair, facts: ImageFacts | str, counts: MaskCounts | str, reader: MaskReader) -> None:
    if isinstance(facts, str):
        survey.faults.append(Fault(str(pair.image), facts, pair.sample))
    if isinstance(counts, str):
        survey.faults.append(Fault(mask_file(reader, pair.masks, pair.mask), counts, pair.sample))
    image = None if isinstance(facts, str) else facts
    if isinstance(counts, str):
        survey.add(Seen(pair, image), None)
        return
    size = counts.size_hw[0] * counts.size_hw[1]
    filled = next((key for key, pixels in counts.pixels.items() if pixels == size), None)
    survey.add(Seen(pair, image, counts.size_hw, counts.kind, frozenset(counts.pixels), filled), counts)
    if image is not None and image.size_hw != counts.size_hw:
        text = _size_text(counts.size_hw, image.size_hw)
        survey.faults.append(Fault(mask_file(reader, pair.masks, pair.mask), text, pair.sample))


def _size_text(mask_hw: tuple[int, int], image_hw: tuple[int, int]) -> str:
    text = f"the mask is {mask_hw[0]}x{mask_hw[1]} (height x width), its image {image_hw[0]}x{image_hw[1]}."
    if mask_hw == image_hw[::-1]:
        return f"{text} One of them lies on its side: turn it."
    return f"{text} Draw or export the mask at the size of the image."


def _attempt(call: Callable[[], Result]) -> Result | str:
    try:
        return call()
    except ValueError as error:
        return str(error)


def _facts(image: np.ndarray) -> ImageFacts:
    some = image[:: max(1, image.shape[0] // _LINES), :: max(1, image.shape[1] // _LINES)]
    colour = image.shape[2] == 3 and bool((some != some[..., :1]).any())
    lowest = None if image.dtype == np.uint8 else float(image.min())
    return ImageFacts(image.shape[:2], image.shape[2], str(image.dtype), colour, lowest)
