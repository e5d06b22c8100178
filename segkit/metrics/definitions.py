"""Every usual definition of a score by name, from one table of counts per image and class.

The same masks score from 0.52 to 0.94 depending on what is averaged and on what an absent class counts as, so both
are said by name here. `segkit.metrics.peers` puts these parts together as other toolkits do.

| average | is |
|---|---|
| `pooled` | pixels summed over the data set, one score per class, mean over classes |
| `micro` | pixels summed over the data set and the classes, one score |
| `per_image` | one score per class and image, mean over the images, then over classes |
| `per_group` | pixels summed over the images of a group (a patient), then as `per_image` over groups |

| empty | a class in neither truth nor prediction (of the data set, the image or the group) |
|---|---|
| `leave_out` | has no score and is left out of means |
| `one` | scores 1: nothing was there, and nothing was said |
| `zero` | scores 0 |
| `penalise` | as `leave_out`; a distance, which has no value where one side is empty, counts as the largest possible |

A class that is predicted where the truth has none scores 0 under all four.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.metrics.counts import Counts, pixels_of_truth
from segkit.metrics.scores import ClassScores, present, ratio
from segkit.suggest import closest

AVERAGES = ("pooled", "micro", "per_image", "per_group")
EMPTY_RULES = {"leave_out": torch.nan, "one": 1.0, "zero": 0.0, "penalise": torch.nan}


def define_score(
    counts: Counts,
    name: str = "iou",
    average: str = "pooled",
    *,
    empty: str = "leave_out",
    foreground_only: bool = False,
    frequency_weighted: bool = False,
    groups: Sequence[str] | None = None,
) -> ClassScores:
    """One score under one definition.

    Args:
        name: one of `SCORE_NAMES`.
        average: one of `AVERAGES`.
        empty: one of `EMPTY_RULES`.
        foreground_only: leave out the class named `background`, which is most of an image and easily right.
        frequency_weighted: classes weigh as many pixels as the truth has of them, in place of one each.
        groups: (n,) name of the group of each image, with `per_group`.

    Returns:
        `per_class` of the classes that count, and their mean; with `micro` the mean alone, all else is None.

    Raises:
        ValueError: a name that is not known, or parts that do not go together.
    """
    check_empty_rule(empty)
    if average not in AVERAGES:
        raise ValueError(f"average {average!r} is not known. {closest(average, AVERAGES)}")
    if (groups is not None) != (average == "per_group"):
        raise ValueError(f"`groups` go with the average per_group, and it needs them; the average is {average!r}.")
    kept = scored_classes(counts.format, foreground_only)
    rows = counts.rows[:, kept]
    names = [counts.format.names[index] for index in kept]
    if average == "micro":
        if frequency_weighted:
            raise ValueError("`micro` sums over classes before it scores, so no class has a weight.")
        total = _scored(name, rows.sum((0, 1)), empty)
        return ClassScores(mean=_known(total), per_class=dict.fromkeys(names))
    if average == "pooled":
        by_class = _scored(name, rows.sum(0), empty)
    else:
        units = rows if groups is None else sum_groups(rows, groups)
        by_class = _scored(name, units, empty).nanmean(0)
    weights = (
        pixels_of_truth(rows.sum(0))[..., 0].double()
        if frequency_weighted
        else torch.ones(len(kept), dtype=torch.float64)
    )
    there = ~by_class.isnan()
    mean = (by_class * weights)[there].sum() / weights[there].sum()
    return ClassScores(mean=_known(mean), per_class=dict(zip(names, map(_known, by_class), strict=True)))


def check_empty_rule(empty: str) -> None:
    """Refuse what is not one of `EMPTY_RULES`."""
    if empty not in EMPTY_RULES:
        raise ValueError(f"rule for empty classes {empty!r} is not known. {closest(empty, EMPTY_RULES)}")


def scored_classes(format: MaskFormat, foreground_only: bool) -> list[int]:
    """Numbers of the classes that count; all, where none is named `background`."""
    named = [index for index, name in enumerate(format.names) if name != BACKGROUND or not foreground_only]
    if not named:
        raise ValueError("the only class is `background`: nothing is left to score without it.")
    return named


def sum_groups(rows: Tensor, groups: Sequence[str]) -> Tensor:
    """(g, C, 4) counts summed over the images of each group, in the order in which groups first occur.

    Args:
        rows: (n, C, 4) int64.
        groups: (n,) names.
    """
    if len(groups) != len(rows):
        raise ValueError(f"{len(groups)} groups for {len(rows)} images: give one per image.")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([numbers[name] for name in groups], dtype=torch.int64)
    return torch.zeros((len(numbers), *rows.shape[1:]), dtype=rows.dtype).index_add_(0, index, rows)


def _scored(name: str, rows: Tensor, empty: str) -> Tensor:
    return torch.where(present(rows), ratio(name, rows), EMPTY_RULES[empty])


def _known(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()
