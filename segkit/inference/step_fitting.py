"""Post-processing from validation data: kinds of steps are tried in turn, and kept if they help by cross-fitting.

Every image goes on as the other folds would have it: with the step that they choose, or none. So the score at the end
is that of images which chose nothing about themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.inference.threshold_fitting import LEAST_GAIN, Criterion
from segkit.metrics.counts import Counts
from segkit.metrics.scores import Scores
from segkit.models.steps import FillHoles, LargestComponent, MinimumSize, Step, Steps, Within

# Smallest regions that may be asked for, in pixels: each twice the one before.
_SIZES = tuple(2**power for power in range(2, 13))


@dataclass(frozen=True)
class Packed:
    """An array, compressed: masks shrink to a hundredth."""

    content: bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    @staticmethod
    def of(array: np.ndarray) -> Packed:
        return Packed(zlib.compress(np.ascontiguousarray(array).tobytes(), 1), array.shape, array.dtype)

    def array(self) -> np.ndarray:
        """A copy that may be written to."""
        return np.frombuffer(bytearray(zlib.decompress(self.content)), self.dtype).reshape(self.shape)


@dataclass
class Case:
    """An image or a volume, with what was predicted for it.

    Attributes:
        numbers: of its samples.
        fold: that it is in.
        planes: (H, W, P), or (D, H, W, P) of a volume: decoded with thresholds that other folds chose.
        target: true planes of that shape.
        spacing_mm: distances along the axes but the last, where known.
    """

    numbers: Sequence[int]
    fold: int
    planes: Packed
    target: Packed
    spacing_mm: Sequence[float] | None


@dataclass(frozen=True)
class StepChoice:
    """What became of one kind of step for one class, or of containment for two.

    Attributes:
        tried: how many steps.
        best: the step that all images choose; None where no step is better than none.
        score_before: without it, after all steps that are kept before it.
        cross_fitted: of every image with the step that the other folds choose.
        kept: whether `best` is kept.
    """

    tried: int
    best: Step | None
    score_before: float
    cross_fitted: float
    kept: bool
    what: str = field(default="")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.__dict__, "best": None if self.best is None else self.best.to_dict()}


def fit_steps(
    cases: Sequence[Case], format: MaskFormat, criterion: Criterion, update: Callable[[int, int], None]
) -> tuple[list[StepChoice], Steps, float]:
    """Steps that help; `planes` of the cases become those after the steps that the other folds choose.

    Args:
        update: called with (kinds of steps tried, kinds in all).

    Returns:
        What was tried; the steps to keep, in their order; and the cross-fitted score with them.
    """
    folds = torch.zeros(sum(len(case.numbers) for case in cases), dtype=torch.int64)
    for case in cases:
        folds[list(case.numbers)] = case.fold
    rows = count_cases(cases, format, ())
    choices: list[StepChoice] = []
    kept: list[Step] = []
    stages = list(_stages(cases, format))
    for number, (what, steps) in enumerate(stages, start=1):
        options: list[Step | None] = [None, *steps]
        counted = [rows, *(count_cases(cases, format, (step,)) for step in steps)]
        before = mean_score(rows, format, criterion)
        best = _best([mean_score(each, format, criterion) for each in counted])
        by_fold = {
            fold: _best([mean_score(each[folds != fold], format, criterion) for each in counted])
            for fold in folds.unique().tolist()
        }
        crossed = torch.stack([counted[by_fold[fold]][image] for image, fold in enumerate(folds.tolist())])
        cross = mean_score(crossed, format, criterion)
        chosen = options[best]
        choice = StepChoice(len(steps), chosen, before, cross, chosen is not None and cross > before + LEAST_GAIN, what)
        choices.append(choice)
        if choice.kept:
            assert chosen is not None
            kept.append(chosen)
            rows = crossed
            for case in cases:
                step = options[by_fold[case.fold]]
                if step is not None:
                    case.planes = Packed.of(_after(case, (step,), format))
        update(number, len(stages))
    return choices, tuple(kept), mean_score(rows, format, criterion)


def count_cases(cases: Sequence[Case], format: MaskFormat, steps: Steps) -> Tensor:
    """(n, C, 4) int64 counts of all samples, after these steps."""
    rows = torch.zeros((sum(len(case.numbers) for case in cases), format.num_classes, 4), dtype=torch.int64)
    for case in cases:
        pred, target = (_as_batch(planes) for planes in (_after(case, steps, format), case.target.array()))
        rows[list(case.numbers)] = format.count(pred, target)
    return rows


def mean_score(rows: Tensor, format: MaskFormat, criterion: Criterion) -> float:
    """The criterion over all classes that occur; 0 where none does."""
    scores = Scores(Counts(format, rows, torch.arange(len(rows))))
    return getattr(scores, criterion.average)(criterion.score).mean or 0.0


def _stages(cases: Sequence[Case], format: MaskFormat) -> Iterator[tuple[str, list[Step]]]:
    """Kinds of steps in the order in which they are tried: (what it is, steps of which at most one is kept)."""
    for inner, outer in _nested(cases, format):
        yield f"{inner} within {outer}", [Within(inner, outer, keep) for keep in ("outer", "inner")]
    # A class that no true mask holds scores best where nothing of it is left: that says nothing of how to clean it.
    names = [name for name in _occurring(cases, format) if name != BACKGROUND]
    for name in names:
        yield f"holes of {name}", [FillHoles((name,))]
    for name in names:
        sizes = [MinimumSize((name,), pixels=size) for size in _SIZES]
        yield f"small regions of {name}", [LargestComponent((name,)), *sizes]


def _occurring(cases: Sequence[Case], format: MaskFormat) -> list[str]:
    """Names of the classes that any true mask holds."""
    seen: set[int] = set()
    for case in cases:
        target = case.target.array()
        seen |= {n for n in range(format.num_classes) if n not in seen and format.holds(target, n).any()}
    return [format.names[number] for number in sorted(seen)]


def _nested(cases: Sequence[Case], format: MaskFormat) -> list[tuple[str, str]]:
    """(inner, outer) classes of which the first lies within the second in all true masks."""
    if not format.classes_overlap:
        return []
    pairs = set(permutations(range(format.num_classes), 2))
    seen = set()
    for case in cases:
        target = case.target.array()
        held = [format.holds(target, number) for number in range(format.num_classes)]
        pairs -= {(i, o) for i, o in pairs if (held[i] & format.vacant(target, o)).any()}
        seen |= {number for number, where in enumerate(held) if where.any()}
    # The same in both directions says that two classes are one, and a class that never occurs lies anywhere.
    found = [(i, o) for i, o in pairs if i in seen and (o, i) not in pairs]
    # Outermost first: a class that is cut to one that is cut itself later would stick out of it.
    depth = {number: sum(i == number for i, _ in found) for number in range(format.num_classes)}
    return [(format.names[i], format.names[o]) for i, o in sorted(found, key=lambda pair: (depth[pair[0]], pair))]


def _after(case: Case, steps: Steps, format: MaskFormat) -> np.ndarray:
    planes = case.planes.array()
    for step in steps:
        step.apply(planes, format, case.spacing_mm)
    return planes


def _best(scores: Sequence[float]) -> int:
    """The first of the highest: none before any step."""
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


def _as_batch(planes: np.ndarray) -> Tensor:
    """(n, P, H, W) of (H, W, P) or (n, H, W, P) planes."""
    moved = np.moveaxis(planes if planes.ndim == 4 else planes[None], -1, 1)
    return torch.from_numpy(np.ascontiguousarray(moved if planes.dtype == np.uint8 else moved.astype(np.int32)))
