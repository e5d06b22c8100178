"""`tune`: thresholds and post-processing of a trained model, chosen on validation data and kept if they help.

Images are dealt into folds. What all but one fold choose is scored on that one, so that the sum over the folds is an
honest score of choosing, and what does not raise it is not kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segkit.data.datasets import MaskDataset
from segkit.data.loaders import eval_loader
from segkit.data.splits import fold_stems
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import slice_stem
from segkit.inference.averaging import with_views
from segkit.inference.evaluate import as_stored, check_comparable, each_answer
from segkit.inference.models import SegmentationModel
from segkit.inference.postprocess import Gathering, find_wholes, planes_of, whole_spacing_mm
from segkit.inference.step_fitting import Case, Packed, StepChoice, count_cases, fit_steps, mean_score
from segkit.inference.threshold_fitting import (
    LEAST_GAIN,
    Criterion,
    Curves,
    ThresholdChoice,
    fit_thresholds,
    threshold_candidates,
)
from segkit.inference.tiling import check_tile, image_logits
from segkit.inference.volumes import check_axes
from segkit.models.devices import pick_device
from segkit.models.steps import Steps, steps_to_list
from segkit.ops.upsample import CoarseLogits


class Answer(NamedTuple):
    """What the model says of one sample: its number, logits, true planes (1, P, H, W) and (row, column) distances."""

    number: int
    logits: CoarseLogits
    target: Tensor
    spacing_mm: Sequence[float] | None


Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Tuning:
    """What was tried, and what is kept.

    Attributes:
        criterion: the score that was to be raised, such as pooled_dice.
        images, folds: how many.
        before: the score of the model as it was.
        cross_fitted: of every image with what the other folds choose.
        plain: with what is kept, on the images that chose it, so too good.
        improved: `cross_fitted` is above `before`; if not, format and steps are those of before.
        thresholds, steps: what became of each.
        notes: what could not be tried, and why.
        format, postprocess: of the model from now on.
    """

    criterion: str
    images: int
    folds: int
    before: float
    cross_fitted: float
    plain: float
    improved: bool
    thresholds: list[ThresholdChoice]
    steps: list[StepChoice]
    notes: list[str]
    format: MaskFormat
    postprocess: Steps

    def summary(self) -> dict[str, Any]:
        """JSON-ready numbers, as a bundle keeps them."""
        names = ("criterion", "images", "folds", "before", "cross_fitted", "plain", "improved")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `segkit tune --json` writes it."""
        return {
            **self.summary(),
            "thresholds": [choice.to_dict() for choice in self.thresholds],
            "steps": [choice.to_dict() for choice in self.steps],
            "notes": self.notes,
            "format": self.format.to_dict(),
            "postprocess": steps_to_list(self.postprocess),
        }


@torch.inference_mode()
def tune(
    model: SegmentationModel,
    data: MaskDataset,
    *,
    criterion: str = "pooled_dice",
    folds: int = 5,
    group: str | None = None,
    seed: int = 0,
    thresholds: bool = True,
    steps: bool = True,
    device: str = "auto",
    batch_size: int = 4,
    tile: int | None = None,
    tta: str | Iterable[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Choose thresholds, then steps of post-processing; the model itself is left as it is.

    The model runs twice over the data: thresholds come first, and steps are fitted to what they decode. Masks are held
    in memory, compressed. Steps that the model has are given up for those that are found, if these are better.

    Args:
        data: validation data, which the model was not trained on.
        criterion: pooled_dice, pooled_iou, per_image_dice or per_image_iou; a mean over classes.
        folds: 2 or more.
        group: regular expression whose first group stays in one fold; default: slices of a volume stay together.
        seed: another seed gives other folds.
        thresholds, steps: what is tuned.
        device, batch_size, tile, tta, workers: as for `evaluate`.
        progress: called with a word on what is counted; see `train_experiment`.

    Raises:
        ValueError: nothing to tune, fewer groups than folds, or masks that mean something else.
    """
    wanted, untunable = Criterion.parse(criterion), _untunable(model.format, data.codec) if thresholds else []
    notes = list(untunable)
    check_comparable(model, data)
    check_tile(tile)
    if not steps and (not thresholds or untunable):
        raise ValueError(" ".join(untunable) or "neither thresholds nor post-processing: nothing is left to tune.")
    counted, place = progress if progress is not None else _silent, pick_device(device)
    data, before, had = as_stored(data), model.format, model.postprocess
    axes = check_axes(None, model.reading)
    if len(axes) > 1:
        data = data.across(model.reading.main_axis)
        notes.append(
            f"the model averages volumes over the axes {''.join(axes)}; what suits slices across "
            f"{model.reading.main_axis} alone is chosen."
        )
    fold_of = _deal(data, folds, group, seed)
    seen = with_views(model, tta).to(place).eval()

    def answers(title: str) -> Iterator[Answer]:
        loader = eval_loader(data, batch_size, workers=workers)
        with counted(title) as update:
            for batch, logits in each_answer(image_logits, seen, data, loader, place, tile, update):
                for image, (number, target) in enumerate(zip(batch.indices or [], batch.target, strict=True)):
                    yield Answer(number, _one(logits, image), target[None], batch.spacing_mm)

    choices: list[ThresholdChoice] = []
    final, by_fold = before, [before] * folds
    if thresholds and not untunable:
        curves = [Curves(before, threshold_candidates(before), wanted) for _ in range(folds)]
        for answer in answers("counting"):
            curves[fold_of[answer.number]].add(answer.logits.full(), answer.target)
        choices, final, by_fold = fit_thresholds(curves, before)
    variants = [[before, by_fold[fold], final] for fold in fold_of]
    old, crossed, new = _decode(answers("predicting"), data, variants, fold_of)
    tried: list[StepChoice] = []
    kept = had
    if steps:
        with counted("fitting steps") as update:
            tried, kept, cross_fitted = fit_steps(crossed, before, wanted, update)
    else:
        cross_fitted = _score(crossed, had, before, wanted)
    score = _score(old, had, before, wanted)
    plain = _score(new, kept, before, wanted)
    improved = cross_fitted > score + LEAST_GAIN
    return Tuning(
        criterion,
        len(data),
        folds,
        score,
        cross_fitted,
        plain,
        improved,
        choices,
        tried,
        notes,
        final if improved else before,
        kept if improved else had,
    )


def _decode(
    answers: Iterable[Answer], data: MaskDataset, variants: Sequence[Sequence[MaskFormat]], fold_of: Sequence[int]
) -> list[list[Case]]:
    """All images and volumes, once for each variant of the format; `variants` are those of each sample."""
    gathering: Gathering[list[np.ndarray]] = Gathering(find_wholes(data))
    found: list[list[Case]] = [[] for _ in variants[0]]
    for answer in answers:
        formats = variants[answer.number]
        pred = [planes_of(format.decode(answer.logits), format)[0] for format in formats]
        ready = gathering.add(answer.number, [*pred, planes_of(answer.target, formats[0])[0]])
        if ready is None:
            continue
        whole, slices = ready
        *several, target = (np.stack(part) if whole.is_volume else part[0] for part in zip(*slices, strict=True))
        spacing_mm, truth = whole_spacing_mm(data, whole, answer.spacing_mm), Packed.of(target)
        for cases, planes in zip(found, several, strict=True):
            cases.append(Case(whole.numbers, fold_of[answer.number], Packed.of(planes), truth, spacing_mm))
    return found


def _score(cases: Sequence[Case], steps: Steps, format: MaskFormat, criterion: Criterion) -> float:
    return mean_score(count_cases(cases, format, steps), format, criterion)


def _untunable(format: MaskFormat, codec: Codec) -> list[str]:
    """Why thresholds cannot be tuned; empty where they can."""
    groups = format.threshold_groups
    if not groups:
        return [f"{format.describe()} takes the best class of each pixel and has no thresholds."]
    if any(group.optional for group in groups) and not _writes_ignored(codec):
        return [
            "below a threshold, one-vs-rest classes would give pixels without a class, which the codec "
            f"{codec.name!r} cannot write: give it an ignored value (`ignored_values`) to have thresholds tuned."
        ]
    return []


def _writes_ignored(codec: Codec) -> bool:
    """Whether masks may hold pixels without a class."""
    format = codec.format
    planes = np.full((2, 3, format.num_planes), format.ignore_index, format.dtype)
    with tempfile.TemporaryDirectory() as folder:
        try:
            codec.write(folder, slice_stem("ignored", "z", 0), planes)  # a name that codecs of volumes take too
        except ValueError:
            return False
    return True


def _deal(data: MaskDataset, folds: int, group: str | None, seed: int) -> list[int]:
    """The fold of each sample."""
    dealt = {stem: fold for fold, stems in enumerate(fold_stems(data.stems, folds, seed, group)) for stem in stems}
    return [dealt[stem] for stem in data.stems]


def _one(logits: CoarseLogits, image: int) -> CoarseLogits:
    values = logits.values[image : image + 1]
    return CoarseLogits(values, logits.size_hw, logits.crop_hw, logits.align_corners)


def _silent(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    return nullcontext(lambda done, total: None)
