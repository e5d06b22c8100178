"""Gradients of segkit's losses in float64 against autograd through the textbook formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import class_planes, overlapping_planes, random_logits, with_ignored
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Settings
from segkit import MaskFormat, build_loss
from segkit.ops.upsample import CoarseLogits

Loss = Callable[[Any, Tensor], Tensor]
Build = Callable[[dict, MaskFormat], Loss]

_LIMIT = Goal(1e-12)
_SIZE_HW = (37, 53)  # odd, and unequal
_COARSE_HW = (7, 11)


@dataclass(frozen=True)
class Case:
    """One input on which a gradient is checked.

    Attributes:
        logits: (N, C, h, w) float64.
        target: (N, P, H, W) uint8, ignored pixels included.
        weights: (C,) class weights, or None.
        align_corners: how the logits are upsampled to the target's size; None where they have it.
    """

    name: str
    format: MaskFormat
    logits: Tensor
    target: Tensor
    weights: list[float] | None = None
    align_corners: bool | None = None


def gradients(settings: Settings, build: Build = build_loss) -> list[Row]:
    """Largest error of any gradient, as a share of the largest gradient, per family of losses.

    Args:
        build: what makes the loss under test.
    """
    families: dict[str, list[Case]] = {
        "softmax: Dice + CE": list(exclusive_cases()),
        "sigmoid: Dice + BCE": list(overlapping_cases()),
        "x4 upsampling, softmax and sigmoid": list(upsampled_cases()),
    }
    entries = []
    for name, cases in families.items():
        errors = [gradient_error(case, build, settings.device) for case in cases]
        entries.append(Entry(f"{name}, {len(cases)} cases", samples=[max(errors)], goal=_LIMIT))
    return [Row("gradients", "gradient in float64 against autograd", "relative error", entries).relate()]


def gradient_error(case: Case, build: Build, device: torch.device) -> float:
    """Largest difference from autograd through `textbook_loss`, as a share of the largest gradient; both 0 is 0."""
    spec = {"cross_entropy": {"class_weights": case.weights}, "dice": 1}
    loss = build(spec, case.format)
    logits, target = case.logits.to(device), case.target.to(device)
    # to() and requires_grad_() keep strides, so that what is checked is what the case says.
    mine = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    truth = logits.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(_apply(loss, mine, target, case.align_corners), mine)
    value = textbook_loss(_upsample(truth, target, case.align_corners), target, case)
    (expected,) = torch.autograd.grad(value, truth)
    largest, error = float(expected.abs().max()), float((found - expected).abs().max())
    return error / largest if largest > 0 else error


def textbook_loss(logits: Tensor, target: Tensor, case: Case) -> Tensor:
    """Σ w·term / Σ w over valid choices, plus 1 - mean over classes of (2 Σpt + 1) / (Σp + Σt + 1).

    Written with one-hot tensors and torch's own functions, nothing of segkit's.
    """
    valid = target != 255
    weights = torch.ones(logits.shape[1], dtype=logits.dtype, device=logits.device)
    if case.weights is not None:
        weights = torch.tensor(case.weights, dtype=logits.dtype, device=logits.device)
    if case.format.classes_overlap:
        truth = (target == 1).to(logits.dtype)
        probs = logits.sigmoid()
        terms = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        weight = torch.where(truth == 1, weights.view(1, -1, 1, 1), 1.0)
    else:
        index = torch.where(valid, target, 0).long()[:, 0]
        truth = F.one_hot(index, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
        probs = logits.softmax(1)
        terms = F.cross_entropy(logits, index, reduction="none").unsqueeze(1)
        weight = weights[index].unsqueeze(1)
    weight = weight * valid
    total = weight.sum()
    pixel = (weight * terms).sum() / torch.where(total > 0, total, 1.0)
    both, ps, ts = ((x * valid).sum((0, 2, 3)) for x in (probs * truth, probs, truth))
    return pixel + 1.0 - ((2.0 * both + 1.0) / (ps + ts + 1.0)).mean()


def exclusive_cases() -> Iterator[Case]:
    """Odd sizes, one class, 150 classes, weights, all ignored, strides of every kind."""
    for classes in (1, 2, 19, 150):
        format = MaskFormat.multiclass(range(classes))
        logits = random_logits(2, classes, _SIZE_HW).double() * 3
        target = with_ignored(class_planes(2, classes, _SIZE_HW))
        yield Case(f"{classes} classes", format, logits, target)
        yield Case(f"{classes} classes, weighted", format, logits, target, _weights(classes))
    yield from _layouts(format, logits, target)


def overlapping_cases() -> Iterator[Case]:
    """The same for classes that overlap, binary included."""
    for classes in (1, 8):
        format = MaskFormat.multilabel(range(classes))
        logits = random_logits(2, classes, _SIZE_HW).double() * 3
        target = with_ignored(overlapping_planes(2, classes, _SIZE_HW))
        target[1, 0] = 255  # a plane that nobody has drawn
        yield Case(f"{classes} classes", format, logits, target)
        yield Case(f"{classes} classes, weighted", format, logits, target, _weights(classes))
    yield from _layouts(format, logits, target)


def upsampled_cases() -> Iterator[Case]:
    """Logits at a quarter of the target's size, corners aligned and not."""
    h, w = _COARSE_HW
    size_hw = 4 * h, 4 * w
    kinds = [
        (MaskFormat.multiclass(range(classes)), with_ignored(class_planes(2, classes, size_hw)))
        for classes in (1, 19, 150)
    ]
    kinds.append((MaskFormat.multilabel(range(8)), with_ignored(overlapping_planes(2, 8, size_hw))))
    for format, target in kinds:
        logits = random_logits(2, format.num_classes, _COARSE_HW).double() * 3
        for align_corners in (False, True):
            yield Case("upsampled", format, logits, target, None, align_corners)
            yield Case("weighted", format, logits, target, _weights(format.num_classes), align_corners)
    yield Case("all ignored", format, logits, torch.full_like(target, 255), None, False)


def _layouts(format: MaskFormat, logits: Tensor, target: Tensor) -> Iterator[Case]:
    yield Case("all ignored", format, logits, torch.full_like(target, 255))
    yield Case("channels_last", format, logits.contiguous(memory_format=torch.channels_last), target)
    yield Case("transposed", format, logits.transpose(2, 3).contiguous().transpose(2, 3), target)
    wide = torch.stack([logits, logits], dim=4).flatten(3)[..., ::2]
    yield Case("every other column", format, wide, target[..., : wide.shape[3]])


def _weights(classes: int) -> list[float]:
    # Exact in float32, in which segkit keeps them: what is checked is the gradient, not the rounding of an option.
    return [0.5 + (number % 8) / 4 for number in range(classes)]


def _apply(loss: Loss, logits: Tensor, target: Tensor, align_corners: bool | None) -> Tensor:
    if align_corners is None:
        return loss(logits, target)
    return loss(CoarseLogits(logits, tuple(target.shape[2:]), align_corners=align_corners), target)


def _upsample(logits: Tensor, target: Tensor, align_corners: bool | None) -> Tensor:
    if align_corners is None:
        return logits
    return F.interpolate(logits, tuple(target.shape[2:]), mode="bilinear", align_corners=align_corners)
