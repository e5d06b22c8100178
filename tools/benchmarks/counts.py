"""Right and wrong pixels per image and class: from planes, from logits, and of classes that overlap.

Peers get int64, which SMP's and torchmetrics' signatures ask for, made before the clock starts. MONAI counts one-hot
tensors, which its users make of both masks in every step, so that is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import class_planes, disturbed, overlapping_planes, random_logits, with_ignored
from benchmarks.peers import peer
from benchmarks.rows import Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit import MaskFormat, PixelCounts

# Above all but a few of the normal numbers that the other logits are.
_WINNING = 6.0

SMP, TORCHMETRICS, MONAI = "SMP get_stats", "torchmetrics", "MONAI"


def counts(settings: Settings) -> list[Row]:
    """Counts from planes of class indices, without and with ignored pixels."""
    n, classes, size_hw = (2, 5, (48, 80)) if settings.small else (4, 19, (512, 1024))
    truth = class_planes(n, classes, size_hw)
    pred = disturbed(truth, classes).to(settings.device)
    rows = []
    for target, ignore_index, limit in ((truth, None, 0.12), (with_ignored(truth), 255, 0.20)):
        target = target.to(settings.device)
        contenders = [
            *_index_peers(pred, target, classes, ignore_index),
            _segkit(MaskFormat.multiclass(range(classes)), pred, target, limit),
        ]
        title = f"counts, {n}x{size_hw[0]}x{size_hw[1]}, C={classes}{'' if ignore_index is None else ', with ignore'}"
        rows.append(time_row("counts", title, SMP, contenders, settings, tolerance=0.0))
    return rows


def decode_counts(settings: Settings) -> list[Row]:
    """From logits to counts."""
    n, classes, size_hw = (2, 5, (48, 80)) if settings.small else (4, 19, (512, 1024))
    truth = class_planes(n, classes, size_hw)
    logits = random_logits(n, classes, size_hw).scatter_(1, disturbed(truth, classes).long(), _WINNING)
    logits, truth = logits.to(settings.device), truth.to(settings.device)
    indices = truth[:, 0].long()
    format = MaskFormat.multiclass(range(classes))

    def smp() -> Run:
        get_stats = _get_stats("multiclass", num_classes=classes)
        return lambda: get_stats(logits.argmax(1), indices)

    def segkit() -> Run:
        count = _counter(format)
        return lambda: count(format.decode(logits), truth)

    contenders = [
        Contender(SMP, smp, result=_stack_stats),
        Contender("argmax alone", lambda: lambda: logits.argmax(1)),
        Contender("max(1).indices alone", lambda: lambda: logits.max(1).indices),
        Contender("segkit", segkit, Goal(0.30), result=_only),
    ]
    title = f"logits to counts, {n}x{classes}x{size_hw[0]}x{size_hw[1]}"
    return [time_row("decode-counts", title, SMP, contenders, settings, tolerance=0.0)]


def overlapping_counts(settings: Settings) -> list[Row]:
    """Counts of classes that overlap, from one plane each."""
    n, classes, size_hw = (2, 3, (48, 80)) if settings.small else (4, 8, (512, 1024))
    truth = overlapping_planes(n, classes, size_hw)
    pred, truth = disturbed(truth, 2).to(settings.device), truth.to(settings.device)
    wide_pred, wide_truth = pred.long(), truth.long()

    def smp() -> Run:
        get_stats = _get_stats("multilabel")
        return lambda: get_stats(wide_pred, wide_truth)

    def torchmetrics() -> Run:
        scores = peer("torchmetrics", "torchmetrics.functional.classification").multilabel_stat_scores
        options = {"num_labels": classes, "average": None, "multidim_average": "samplewise"}
        return lambda: scores(wide_pred, wide_truth, **options)

    contenders = [
        Contender(SMP, smp, result=_stack_stats),
        Contender(TORCHMETRICS, torchmetrics, result=_reorder_stat_scores),
        Contender(MONAI, partial(_monai, pred, truth, None), result=_reorder_confusion),
        _segkit(MaskFormat.multilabel(range(classes)), pred, truth, 0.10),
    ]
    title = f"overlapping counts, {n}x{classes}x{size_hw[0]}x{size_hw[1]}"
    return [time_row("overlapping-counts", title, SMP, contenders, settings, tolerance=0.0)]


def _index_peers(pred: Tensor, target: Tensor, classes: int, ignore_index: int | None) -> list[Contender]:
    wide_pred, wide_target = pred[:, 0].long(), target[:, 0].long()

    def smp() -> Run:
        get_stats = _get_stats("multiclass", num_classes=classes, ignore_index=ignore_index)
        return lambda: get_stats(wide_pred, wide_target)

    def torchmetrics() -> Run:
        scores = peer("torchmetrics", "torchmetrics.functional.classification").multiclass_stat_scores
        options = {"average": None, "multidim_average": "samplewise", "ignore_index": ignore_index}
        return lambda: scores(wide_pred, wide_target, classes, **options)

    found = [
        Contender(SMP, smp, result=_stack_stats),
        Contender(TORCHMETRICS, torchmetrics, result=_reorder_stat_scores),
    ]
    if ignore_index is None:  # MONAI's one-hot conversion takes no other value than a class
        found.append(Contender(MONAI, partial(_monai, pred, target, classes), result=_reorder_confusion))
    return found


def _segkit(format: MaskFormat, pred: Tensor, target: Tensor, limit: float) -> Contender:
    def prepare() -> Run:
        count = _counter(format)
        return lambda: count(pred, target)

    return Contender("segkit", prepare, Goal(limit), result=_only)


def _counter(format: MaskFormat) -> Callable[[Tensor, Tensor], Tensor]:
    """(N, C, 4) counts of a batch through `PixelCounts`, as `evaluate` takes them."""
    metric = PixelCounts(format)

    def count(pred: Tensor, target: Tensor) -> Tensor:
        metric.update(pred, target)
        rows = metric.rows.pop()
        metric.indices.pop()
        return rows

    return count


def _get_stats(mode: str, **options: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    get_stats = peer("segmentation-models-pytorch", "segmentation_models_pytorch.metrics").get_stats
    return partial(get_stats, mode=mode, **options)


def _monai(pred: Tensor, target: Tensor, classes: int | None) -> Run:
    """Of class indices where `classes` is given, else of 0/1 planes, in float32 as MONAI's transforms make them."""
    get_confusion_matrix = peer("monai", "monai.metrics").get_confusion_matrix
    one_hot = peer("monai", "monai.networks").one_hot
    if classes is None:
        maps = pred.float(), target.float()
        return lambda: get_confusion_matrix(*maps)
    return lambda: get_confusion_matrix(one_hot(pred, classes), one_hot(target, classes))


# Each peer's order of tp, fp, fn, tn becomes segkit's ---------------------------------------------------------


def _only(rows: Tensor) -> list[Tensor]:
    return [rows.cpu()]


def _stack_stats(stats: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.stack([part.cpu() for part in stats], dim=-1)]


def _reorder_stat_scores(rows: Tensor) -> list[Tensor]:
    """torchmetrics: tp, fp, tn, fn, support."""
    return [rows[..., [0, 1, 3, 2]].cpu()]


def _reorder_confusion(rows: Tensor) -> list[Tensor]:
    """MONAI: tp, fp, tn, fn."""
    return [rows[..., [0, 1, 3, 2]].cpu()]
