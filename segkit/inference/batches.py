"""The work of one batch: images are read, answered together, and written; each step can be taken alone."""

from __future__ import annotations

import errno
import io
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from segkit.formats.coco_files import file_name_of
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.inference.inputs import Input
from segkit.inference.models import SegmentationModel
from segkit.inference.objects import object_line
from segkit.inference.overlay import draw_overlay, write_picture

log = logging.getLogger("segkit")

# What the name of one input causes; all else that goes wrong in writing would go wrong for the next one too.
_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL)
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED")


class Answering(Protocol):
    """What a batch needs of a `Predictor`."""

    model: SegmentationModel

    def answers(
        self, images: Sequence[np.ndarray], spacings: Sequence[tuple[float, float] | None], probabilities: bool
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(H, W, P) planes, and (C, H, W) probabilities where they are wanted, of each image as `reading` reads it."""


@dataclass(frozen=True)
class Wanted:
    """What is written for each image beside its mask, and over what.

    Attributes:
        overlay: `_overlay/STEM.png`.
        probabilities: `_probabilities/STEM.npz`.
        objects: a line for `_objects.json`.
        keep: nothing that is there is written anew.
    """

    overlay: bool = False
    probabilities: bool = False
    objects: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Item:
    """One input, by its number in the list of all."""

    number: int
    input: Input


@dataclass(frozen=True)
class Image:
    """What was read of an input, or why it could not be."""

    pixels: np.ndarray | None
    spacing_mm: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Answer:
    """What is to be written of an image, or why there is nothing."""

    pixels: np.ndarray | None = None
    planes: np.ndarray | None = None
    probs: np.ndarray | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes:
        reason: why there is no mask of it; None if there is.
        kept: its mask was there before.
        objects: its line for `join_objects`.
    """

    reason: str | None = None
    kept: bool = False
    objects: bytes = b""


class BatchWork:
    """Reads, answers and writes images. `read` and `write` may run in several threads, `answer` in one.

    Args:
        predictor: answers.
        codec: writes the masks.
        out: where to.
        together: at most so many images are answered at once; it is halved where they do not fit into memory.
    """

    def __init__(
        self, predictor: Answering, codec: Codec, out: Path, wanted: Wanted = Wanted(), together: int | None = None
    ) -> None:
        self.predictor, self.codec, self.out, self.wanted = predictor, codec, out, wanted
        self.together = together
        self._unreadable: dict[Path, str] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: Sequence[Item]) -> list[Outcome]:
        """All steps for one batch, one after the other."""
        answers = self.answer([self.read(item) for item in batch])
        return [self.write(item, answer) for item, answer in zip(batch, answers, strict=True)]

    def is_there(self, item: Item) -> bool:
        """Whether nothing is left to be done for an image. Objects are not looked for: they need the image again."""
        if self.wanted.objects:
            return False
        wanted = [self._overlay(item)] if self.wanted.overlay else []
        wanted += [self._probabilities(item)] if self.wanted.probabilities else []
        return self.codec.holds(self.out, item.input.stem) and all(path.is_file() for path in wanted)

    def read(self, item: Item) -> Image:
        """The pixels of an image. A file that cannot be read is tried once, however many slices it holds."""
        ref, reading = item.input.image, self.predictor.model.reading
        known = self._unreadable.get(ref.path) if ref.axis is not None else None
        if known is not None:
            return Image(None, reason=known)
        try:
            return Image(reading.read(ref), reading.spacing_mm(ref))
        except (ValueError, OSError) as error:
            if ref.axis is not None:
                with self._lock:
                    self._unreadable[ref.path] = str(error)
            return Image(None, reason=str(error))

    def answer(self, images: Sequence[Image]) -> list[Answer]:
        """What the model says of each image."""
        answers = [Answer(reason=image.reason) for image in images]
        readable = [number for number, image in enumerate(images) if image.pixels is not None]
        for number, answer in zip(readable, self._answers([images[n] for n in readable]), strict=True):
            answers[number] = answer
        return answers

    def write(self, item: Item, answer: Answer) -> Outcome:
        """Write what is wanted of an image.

        Raises:
            OSError: nothing can be written, as on a full disk.
        """
        if answer.planes is None:
            return Outcome(answer.reason)
        try:
            kept = self.wanted.keep and self.codec.holds(self.out, item.input.stem)
            if not kept:
                self.codec.write(self.out, item.input.stem, answer.planes, like=item.input.image.path)
            return Outcome(kept=kept, objects=self._write_beside(item, answer))
        except ValueError as error:
            return Outcome(str(error))
        except OSError as error:
            if error.errno in _OF_ONE_NAME:
                return Outcome(f"{error.filename}: {error.strerror}")
            raise

    def _answers(self, images: Sequence[Image]) -> list[Answer]:
        """Those of readable images, so many at once as fit into memory."""
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
                done += [Answer(reason=_alone(reason) if no_memory else reason)]
        return done

    def _answers_of_one(self, image: Image) -> list[Answer]:
        try:
            return self._answers_at_once([image])
        except ValueError as error:
            return [Answer(reason=str(error))]

    def _answers_at_once(self, images: Sequence[Image]) -> list[Answer]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        probabilities = self.wanted.probabilities or self.wanted.objects
        found = self.predictor.answers(pixels, [image.spacing_mm for image in images], probabilities)
        shown = pixels if self.wanted.overlay else [None] * len(pixels)
        return [Answer(image, *answer) for image, answer in zip(shown, found, strict=True)]

    def _write_beside(self, item: Item, answer: Answer) -> bytes:
        assert answer.planes is not None
        format, wanted = self.predictor.model.format, self.wanted
        if wanted.overlay and answer.pixels is not None and not self._is_kept(path := self._overlay(item)):
            seen = self.predictor.model.reading.without_neighbours(answer.pixels)
            write_picture(path, draw_overlay(seen, answer.planes, format))
        if answer.probs is None:
            return b""
        if wanted.probabilities and not self._is_kept(path := self._probabilities(item)):
            content = io.BytesIO()
            half = answer.probs.astype(np.float16)
            np.savez_compressed(content, probabilities=half, classes=np.array(format.names))
            write_whole(path, content.getvalue())
        if not wanted.objects:
            return b""
        name = file_name_of(item.input.stem, item.input.image.path)
        return object_line(item.number, name, answer.planes, answer.probs, format)

    def _is_kept(self, path: Path) -> bool:
        return self.wanted.keep and path.is_file()

    def _overlay(self, item: Item) -> Path:
        return self.out / "_overlay" / f"{item.input.stem}.png"

    def _probabilities(self, item: Item) -> Path:
        return self.out / "_probabilities" / f"{item.input.stem}.npz"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _alone(reason: str) -> str:
    first = reason.splitlines()[0] if reason else "out of memory"
    return f"does not fit into memory even alone ({first}). Cut it into smaller windows with `--tile`."


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
