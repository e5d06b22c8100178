"""The work of one batch: images are read, answered together, and written; each step can be taken alone."""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from segkit.data.images import ImageRef
from segkit.formats.coco_files import file_name_of
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.formats.volumes import load_volume
from segkit.inference.inputs import Input
from segkit.inference.large import goes_by_window, predict_large
from segkit.inference.models import SegmentationModel
from segkit.inference.objects import object_line
from segkit.inference.overlay import draw_overlay, write_picture
from segkit.inference.volumes import answer_volume

log = logging.getLogger("segkit")

# What the name of one input causes; all else that goes wrong in writing would go wrong for the next one too.
_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL)
_LARGE_KEPT = (
    "is computed window by window, and mask and probabilities are written together: one of them is there, and is to be "
    "kept. Remove it, or say `--overwrite always`."
)
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED")


class Answering(Protocol):
    """What a batch needs of a `Predictor`."""

    model: SegmentationModel
    device: torch.device
    tile: int | None

    def answers(
        self, images: Sequence[np.ndarray], spacings: Sequence[Sequence[float] | None], probabilities: bool
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(H, W, P) planes, and (C, H, W) probabilities where they are wanted, of each image as `reading` reads it."""


@dataclass(frozen=True)
class Wanted:
    """What is written for each image beside its mask, and over what.

    Attributes:
        overlay: `_overlay/STEM.png`.
        probabilities: `_probabilities/STEM.npz`, or `STEM.tif` of an image that is computed window by window.
        objects: a line for `_objects.json`.
        keep: nothing that is there is written anew.
        axes: answers for volumes are averaged over slices across these; None is what the model has learned from.
    """

    overlay: bool = False
    probabilities: bool = False
    objects: bool = False
    keep: bool = False
    axes: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work: an image, or all slices of a volume.

    Attributes:
        number: of its first input in the list of all.
        inputs: one, or all slices of a volume.
    """

    number: int
    inputs: Sequence[Input]

    @property
    def image(self) -> ImageRef:
        """Where the image lies, or the first slice."""
        return self.inputs[0].image

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Image:
    """What was read of an item.

    Attributes:
        pixels: None of a volume, of an image that is computed window by window, and of what cannot be read.
        reason: why it cannot be read.
    """

    item: Item
    pixels: np.ndarray | None = None
    spacing_mm: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Answer:
    """What is to be written of an item.

    Attributes:
        pixels: of an image, for the overlay.
        planes: (H, W, P) for each input; None where there is nothing to write.
        probs: (C, H, W) for each input, where they are wanted.
        reason: why there is no mask; None where there is one, also where it was written already.
        kept: so many masks were there before, where there is nothing to write.
    """

    pixels: np.ndarray | None = None
    planes: Sequence[np.ndarray] | None = None
    probs: Sequence[np.ndarray] | None = None
    reason: str | None = None
    kept: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        reason: why there is no mask of it; None if there is.
        kept: so many masks were there before.
        objects: lines for `join_objects`.
    """

    reason: str | None = None
    kept: int = 0
    objects: bytes = b""


class BatchWork:
    """Reads, answers and writes items. `read` and `write` may run in several threads, `answer` in one.

    Args:
        predictor: answers.
        codec: writes the masks.
        out: where to.

    Attributes:
        together: at most so many images are answered at once; it is halved where they do not fit into memory.
        progress: called with the share of a volume, or of a large image, that is computed.
    """

    def __init__(self, predictor: Answering, codec: Codec, out: Path, wanted: Wanted = Wanted()) -> None:
        self.predictor, self.codec, self.out, self.wanted = predictor, codec, out, wanted
        self.together: int | None = None
        self.progress: Callable[[float, Item], None] = lambda share, item: None
        # Overlay, objects and post-processing need all pixels at once.
        self._needs_whole = wanted.overlay or wanted.objects or bool(predictor.model.postprocess)

    def __call__(self, batch: Sequence[Item]) -> list[Outcome]:
        """All steps for one batch, one after the other."""
        answers = self.answer([self.read(item) for item in batch])
        return [self.write(item, answer) for item, answer in zip(batch, answers, strict=True)]

    def is_there(self, item: Item) -> bool:
        """Whether nothing is left to be done for an item. Objects are not looked for: they need the image again."""
        return not self.wanted.objects and all(
            self.codec.holds(self.out, given.stem)
            and not (self.wanted.overlay and not self._overlay(given).is_file())
            and not (self.wanted.probabilities and not self._has_probabilities(given))
            for given in item.inputs
        )

    def read(self, item: Item) -> Image:
        """The pixels of an image; a volume is decoded, so that it is at hand when it is answered."""
        ref, reading = item.image, self.predictor.model.reading
        try:
            if self._is_volume(item):
                for path in ref.bands or (ref.path,) if ref.axis is not None else ():
                    load_volume(path)
                return Image(item)
            if goes_by_window(ref, self.codec, self._needs_whole):
                return Image(item)
            return Image(item, reading.read(ref), reading.spacing_mm(ref))
        except (ValueError, OSError) as error:
            return Image(item, reason=str(error))

    def answer(self, images: Sequence[Image]) -> list[Answer]:
        """What the model says of each item."""
        answers = [Answer(reason=image.reason) for image in images]
        at_hand = [number for number, image in enumerate(images) if image.pixels is not None]
        for number, answer in zip(at_hand, self._answers([images[n] for n in at_hand]), strict=True):
            answers[number] = answer
        for number, image in enumerate(images):
            if image.pixels is None and image.reason is None:
                answers[number] = self._alone(image.item)
        return answers

    def write(self, item: Item, answer: Answer) -> Outcome:
        """Write what is wanted of an item.

        Raises:
            OSError: nothing can be written, as on a full disk.
        """
        if answer.planes is None:
            return Outcome(answer.reason, answer.kept)
        try:
            kept = self._write_masks(item, answer.planes)
            return Outcome(kept=kept, objects=self._write_beside(item, answer))
        except ValueError as error:
            return Outcome(str(error))
        except OSError as error:
            return Outcome(_of_one_name(error))

    def _is_volume(self, item: Item) -> bool:
        # With `axes` an image that is none is refused by `answer_volume`, by name.
        return item.image.axis is not None or self.wanted.axes is not None

    def _answers(self, images: Sequence[Image]) -> list[Answer]:
        """Those of images that were read, so many at once as fit into memory."""
        done: list[Answer] = []
        while len(done) < len(images):
            some = images[len(done) :][: self.together]
            try:
                done += self._answers_at_once(some)
                continue
            except (RuntimeError, MemoryError, ValueError) as error:
                # Kept as text: the error holds the frames whose tensors fill the memory.
                reason, no_memory = str(error), is_out_of_memory(error)
                if not no_memory and not isinstance(error, ValueError):
                    raise
            if no_memory:
                _free_memory()
            if len(some) > 1 and no_memory:
                self.together = (len(some) + 1) // 2
                log.warning("%d images do not fit into memory at once: going on with %d.", len(some), self.together)
            elif len(some) > 1:
                # One of them is refused: each alone says which.
                done += [answer for image in some for answer in self._answers_of_one(image)]
            else:
                done += [Answer(reason=_alone_text(reason) if no_memory else reason)]
        return done

    def _answers_of_one(self, image: Image) -> list[Answer]:
        try:
            return self._answers_at_once([image])
        except ValueError as error:
            return [Answer(reason=str(error))]

    def _answers_at_once(self, images: Sequence[Image]) -> list[Answer]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        spacings = [image.spacing_mm for image in images]
        found = self.predictor.answers(pixels, spacings, self._needs_probabilities)
        shown = pixels if self.wanted.overlay else [None] * len(pixels)
        return [
            Answer(image, [planes], None if probs is None else [probs])
            for image, (planes, probs) in zip(shown, found, strict=True)
        ]

    @property
    def _needs_probabilities(self) -> bool:
        return self.wanted.probabilities or self.wanted.objects

    def _alone(self, item: Item) -> Answer:
        """The answer for what is computed piece by piece: a volume, or an image that is written meanwhile."""
        compute = self._volume if self._is_volume(item) else self._large
        for at_once in (None, 1):
            try:
                return compute(item, at_once)
            except ValueError as error:
                return Answer(reason=str(error))
            except OSError as error:
                return Answer(reason=_of_one_name(error))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            _free_memory()
        return Answer(reason=_alone_text(reason))

    def _volume(self, item: Item, at_once: int | None) -> Answer:
        found = answer_volume(
            self.predictor.model, item.image, self.wanted.axes,
            device=self.predictor.device, tile=self.predictor.tile, batch_size=at_once,
            probabilities=self._needs_probabilities, progress=lambda share: self.progress(share, item),
        )  # fmt: skip
        return Answer(planes=list(found.planes), probs=None if found.probs is None else list(found.probs))

    def _large(self, item: Item, at_once: int | None) -> Answer:
        given = item.inputs[0]
        if self.wanted.keep and self.codec.holds(self.out, given.stem):
            return Answer(kept=1) if self.is_there(item) else Answer(reason=f"{given.image}: {_LARGE_KEPT}")
        predict_large(
            self.predictor.model, given.image, self.codec, self.out, given.stem,
            device=self.predictor.device, tile=self.predictor.tile, batch_size=at_once or 1,
            probabilities=self.wanted.probabilities, needs_whole=self._needs_whole,
            progress=lambda done, total: self.progress(done / total, item),
        )  # fmt: skip
        return Answer()

    def _write_masks(self, item: Item, planes: Sequence[np.ndarray]) -> int:
        """Write masks; the number of those that were there before and are kept."""
        like, stems = item.image.path, [given.stem for given in item.inputs]
        held = [self.wanted.keep and self.codec.holds(self.out, stem) for stem in stems]
        if self._is_volume(item) and not any(held):
            self.codec.write_volume(self.out, stems, np.stack(planes), like=like)
        else:
            for stem, one, is_held in zip(stems, planes, held, strict=True):
                if not is_held:
                    self.codec.write(self.out, stem, one, like=like)
        return sum(held)

    def _write_beside(self, item: Item, answer: Answer) -> bytes:
        assert answer.planes is not None
        format, reading, wanted = self.predictor.model.format, self.predictor.model.reading, self.wanted
        lines = []
        for place, (given, planes) in enumerate(zip(item.inputs, answer.planes, strict=True)):
            if wanted.overlay and not self._is_kept(path := self._overlay(given)):
                pixels = reading.read(given.image) if answer.pixels is None else answer.pixels
                write_picture(path, draw_overlay(reading.without_neighbours(pixels), planes, format))
            if answer.probs is None:
                continue
            probs = answer.probs[place]
            if wanted.probabilities and not self._is_kept(path := self._probabilities(given)):
                content = io.BytesIO()
                np.savez_compressed(content, probabilities=probs.astype(np.float16), classes=np.array(format.names))
                write_whole(path, content.getvalue())
            if wanted.objects:
                name = file_name_of(given.stem, given.image.path)
                lines.append(object_line(item.number + place, name, planes, probs, format))
        return b"".join(lines)

    def _is_kept(self, path: Path) -> bool:
        return self.wanted.keep and path.is_file()

    def _overlay(self, given: Input) -> Path:
        return self.out / "_overlay" / f"{given.stem}.png"

    def _probabilities(self, given: Input) -> Path:
        return self.out / "_probabilities" / f"{given.stem}.npz"

    def _has_probabilities(self, given: Input) -> bool:
        path = self._probabilities(given)
        return path.is_file() or path.with_name(path.name[: -len("npz")] + "tif").is_file()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _of_one_name(error: OSError) -> str:
    """The reason why one input has no mask; raises what would go wrong for the next one too."""
    if error.errno not in _OF_ONE_NAME:
        raise error
    # Of two files the second is the mask, whose place the first could not take.
    return f"{error.filename2 or error.filename}: {error.strerror}"


def _alone_text(reason: str) -> str:
    first = reason.splitlines()[0] if reason else "out of memory"
    return f"does not fit into memory even alone ({first}). Cut it into smaller windows with `--tile`."


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
