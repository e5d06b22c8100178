"""What is told about the parts of a data set before the first step, from their names and one pass over the samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from segkit.data.datasets import MaskDataset
from segkit.data.sample import Sample
from segkit.data.splits import case_of
from segkit.inspection.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint

log = logging.getLogger("segkit")

_SHOWN = 5


class PartSurvey:
    """What a part of the data holds, gathered while its samples are read.

    Attributes:
        fingerprints: of each image, by stem.
        seen: (C,) bool, classes that occur in a valid pixel.
        ignored: stems of which every pixel is ignored in every plane.
    """

    def __init__(self, data: MaskDataset) -> None:
        self.data = data
        self.fingerprints: dict[str, Fingerprint] = {}
        self.seen = np.zeros(data.format.num_classes, dtype=bool)
        self.ignored: list[str] = []

    def take(self, sample: Sample) -> None:
        """Look at one sample; may be called from several threads."""
        format, planes = self.data.format, sample.planes
        self.fingerprints[sample.stem] = fingerprint(sample.image)
        # The largest value of the type means *ignored*.
        if planes.min() == format.ignore_index:
            self.ignored.append(sample.stem)
        elif not self.seen.all():
            target = torch.from_numpy(planes.transpose(2, 0, 1)[None].astype(np.int32)).to(format.torch_dtype)
            # Of planes against themselves, what is there is a hit.
            self.seen[format.count(target, target)[0, :, 0].numpy() > 0] = True  # never back: threads are at it


def check_parts(surveys: Mapping[str, PartSurvey], leaks: Literal["refuse", "warn"] = "refuse") -> None:
    """Refuse parts that cannot be trained or scored honestly, and warn of those that hardly can.

    Args:
        surveys: by name, `train` first; all samples were taken.
        leaks: what to do about an image of `train` that is in another part too.

    Raises:
        ValueError: every training pixel is ignored, or images of `train` are in other parts.
    """
    _check_ignored(surveys)
    _warn_of_classes(surveys)
    _warn_of_volumes(surveys)
    _check_leaks(surveys, leaks)


def warn_of_shared_files(train: MaskDataset, val: MaskDataset) -> None:
    """Tell, without reading anything, of images or volumes that both take from the same files."""
    shared = sorted(_files(train) & _files(val))
    if shared:
        log.warning(
            "training and validation images are read from the same files, so that validation scores will look better "
            "than they are: %s.",
            _some([name for _, name in shared]),
        )


def leaked_images(fingerprints: Mapping[tuple[str, str], Fingerprint]) -> list[Duplicate]:
    """Pairs of a training image and the same one, pixel for pixel, in another part; keys are (part, stem)."""
    return [pair for pair in _across(fingerprints) if _is_leak(pair)]


def _check_ignored(surveys: Mapping[str, PartSurvey]) -> None:
    for name, survey in surveys.items():
        count, total = len(survey.ignored), len(survey.data)
        if count < total:
            if count:
                log.warning(
                    "%d of %d samples of %s are ignored in every pixel, and say nothing: %s.",
                    *(count, total, name, _some(sorted(survey.ignored))),
                )
            continue
        text = (
            f"{survey.data.masks}: every pixel of all {total} masks of data.{name} is ignored. Check which values on "
            f"disk are classes (`masks.codec`) and which are ignored (`masks.ignored_values`)"
        )
        if name == "train":
            raise ValueError(f"{text}: there is nothing to learn.")
        log.warning("%s: there is nothing to score.", text)


def _warn_of_classes(surveys: Mapping[str, PartSurvey]) -> None:
    trained = surveys["train"].seen
    names = surveys["train"].data.format.names
    others = {name: survey for name, survey in surveys.items() if name != "train"}
    lost = [str(n) for n, seen in zip(names, trained, strict=True) if not seen]
    if not lost:
        return
    log.warning("classes that occur in no training mask, so that no model learns them: %s.", _some(lost))
    for name, survey in others.items():
        asked = [str(n) for n, here in zip(names, survey.seen & ~trained, strict=True) if here]
        if asked:
            log.warning("of these, %s holds %s: they will be scored, and found nowhere.", name, _some(asked))


def _warn_of_volumes(surveys: Mapping[str, PartSurvey]) -> None:
    """Slices of one file on both sides are as good as the same image."""
    train = _volumes(surveys["train"].data)
    for name, survey in surveys.items():
        shared = sorted(train & _volumes(survey.data)) if name != "train" and train else []
        if shared:
            log.warning(
                "slices of the same volumes are in train and in %s, whose scores will look better than they are: %s. "
                "Put whole volumes into one part, as `from: train` does.",
                *(name, _some([case for _, case in shared])),
            )


def _volumes(data: MaskDataset) -> set[tuple[str, str]]:
    slices = [stem for stem in data.stems if case_of(stem) is not None]
    return _files(data.subset(slices)) if slices else set()


def _files(data: MaskDataset) -> set[tuple[str, str]]:
    """(file, name of the sample, or of the volume that it is a slice of) of each image."""
    return {(str(data.image_path(i).absolute()), case_of(stem) or stem) for i, stem in enumerate(data.stems)}


def _check_leaks(surveys: Mapping[str, PartSurvey], leaks: str) -> None:
    # In the order of the data: threads have taken the samples as they came, and the first of equal images is named.
    prints = {(name, stem): s.fingerprints[stem] for name, s in surveys.items() for stem in s.data.stems}
    pairs = _across(prints)
    equal = [pair for pair in pairs if _is_leak(pair)]
    if equal and leaks == "refuse":
        raise ValueError(
            f"training images are scored too, pixel for pixel: {_told(equal)}. Scores would look better than they are. "
            "Leave them out of one part with `data.quarantine: FILE`, a line `train: STEM` for each, or accept them "
            "with `data.leaks: warn`."
        )
    for kind, text in (("exact", "the same images"), ("near", "nearly the same images")):
        found = [pair for pair in pairs if pair.kind == kind]
        if found:
            log.warning("%s are in two parts, whose scores may look better than they are: %s.", text, _told(found))


def _across(fingerprints: Mapping[tuple[str, str], Fingerprint]) -> list[Duplicate]:
    found = find_duplicates(fingerprints, {key: key[0] for key in fingerprints})
    # Two black images, as the outer slices of volumes are, say nothing about each other.
    return [p for p in found if p.parts[0] != p.parts[1] and fingerprints[p.a].hash is not None]  # type: ignore[index]


def _is_leak(pair: Duplicate) -> bool:
    return pair.kind == "exact" and pair.parts[0] == "train"


def _told(pairs: Sequence[Duplicate]) -> str:
    """`3 images of val (a = train b, c = train d, ...)`."""
    texts = []
    for part in dict.fromkeys(pair.parts[1] for pair in pairs):
        here = [pair for pair in pairs if pair.parts[1] == part]
        shown = [f"{pair.b[1]} = {pair.a[0]} {pair.a[1]}" for pair in here]  # type: ignore[index]
        texts.append(f"{len(here)} image{'' if len(here) == 1 else 's'} of {part} ({_some(shown)})")
    return " and ".join(texts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
