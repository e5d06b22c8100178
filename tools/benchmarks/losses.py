"""Losses forward and backward: time, and peak memory in units of the logits.

Every peer gets the target in the form in which its own data pipeline hands it out, and options that make it compute
what segkit computes (Dice over the batch, all classes, one pixel of smoothing), which `time_row` checks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floors import COPY, UPSAMPLED_COPY, Floor, plain_bytes, upsampled_bytes, with_floor
from benchmarks.inputs import class_planes, overlapping_planes, random_logits
from benchmarks.memory import peak_mib
from benchmarks.peers import Absent, peer
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Contender, Run, Settings, rounds_of, time_row
from segkit import MaskFormat, build_loss
from segkit.ops.upsample import CoarseLogits

Loss = Callable[[Any, Tensor], Tensor]

NNUNET, SMP, MONAI = "nnU-Net", "SMP", "MONAI"
COMPILED = "nnU-Net, torch.compile"
_MIB = 2**20
# bfloat16 has eight bits of mantissa; gradients then differ by rounding alone.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """Contenders on one set of inputs; on CUDA, `floor` is shown beside them."""

    title: str
    baseline: str
    contenders: list[Contender]
    logits_mib: float
    floor: Floor | None = None
    tolerance: float = 1e-3


def losses(settings: Settings) -> list[Row]:
    """Time of Dice + cross-entropy, forward and backward."""
    names = ["exclusive", "exclusive-channels-last"]
    if settings.device.type == "cuda":
        names += ["exclusive-150", "exclusive-150-bf16"]
    return [_time("losses", CASES[name](settings), settings) for name in names]


def losses_memory(settings: Settings) -> list[Row]:
    """Peak memory of the same beyond logits and target, in units of the logits."""
    names = ["exclusive"] if settings.device.type == "cpu" else ["exclusive", "exclusive-150"]
    rows = []
    for name in names:
        case = CASES[name](settings)
        case = replace(case, contenders=[replace(c, goal=_goal(c, 1.15)) for c in case.contenders])
        row = memory_row("losses-memory", name, case, settings)
        rows.append(replace(row, baseline=None, unit=case.logits_mib, unit_name="the logits").relate())
    return rows


def overlapping_loss(settings: Settings) -> list[Row]:
    """Time of Dice + binary cross-entropy over classes that overlap."""
    return [_time("overlapping-loss", CASES["overlapping"](settings), settings)]


def upsampled_loss(settings: Settings) -> list[Row]:
    """Time and peak memory of bilinear upsampling by four followed by Dice + cross-entropy."""
    rows = []
    for name in ("upsampled-19", "upsampled-150"):
        case = CASES[name](settings)
        rows.append(_time("upsampled-loss", case, settings))
        case = replace(case, contenders=[replace(c, goal=_goal(c, 0.10)) for c in case.contenders])
        rows.append(memory_row("upsampled-loss", name, case, settings))
    return rows


def exclusive_case(
    settings: Settings,
    classes: int = 19,
    n: int = 4,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Case:
    """Dice + cross-entropy of a softmax over classes that exclude each other."""
    n, classes, size_hw = (2, 5, (48, 80)) if settings.small else (n, classes, (512, 512))
    logits = random_logits(n, classes, size_hw).to(settings.device, dtype, memory_format=layout).requires_grad_()
    planes = class_planes(n, classes, size_hw).to(settings.device)
    indices, narrow = planes[:, 0].long(), planes.to(torch.int16)
    contenders = [
        _contender(NNUNET, nnunet_loss, logits, narrow, offset=1.0),
        _contender(SMP, smp_loss, logits, indices),
        _contender(MONAI, monai_loss, logits, planes.long()),
        Contender("F.cross_entropy alone", lambda: _backward(F.cross_entropy, logits, indices)),
        _copy_of(logits),
        _contender("segkit", lambda: segkit_loss(classes), logits, planes, goal=Goal(0.40)),
    ]
    if settings.device.type == "cuda":
        compiled = _contender(COMPILED, lambda: torch.compile(nnunet_loss()), logits, narrow, offset=1.0)
        contenders.insert(1, compiled)
    title = f"Dice + CE, {_shape(logits)}"
    if dtype != torch.float32:
        title += ", bf16"
    if layout == torch.channels_last:
        title += ", channels_last"
    floor = Floor(plain_bytes(logits, planes, softmax=True), COPY, logits.nbytes)
    return Case(title, NNUNET, contenders, _mib(logits), floor, _TOLERANCE[dtype])


def overlapping_case(settings: Settings) -> Case:
    """Dice + binary cross-entropy of sigmoids over classes that overlap."""
    n, classes, size_hw = (2, 3, (48, 80)) if settings.small else (4, 8, (512, 512))
    logits = random_logits(n, classes, size_hw).to(settings.device).requires_grad_()
    planes = overlapping_planes(n, classes, size_hw).to(settings.device)
    contenders = [
        _contender(MONAI, monai_overlapping_loss, logits, planes.float()),
        _contender(NNUNET, nnunet_overlapping_loss, logits, planes.to(torch.int16), offset=1.0),
        _contender(SMP, smp_overlapping_loss, logits, planes.float()),
        _copy_of(logits),
        _contender("segkit", lambda: segkit_overlapping_loss(classes), logits, planes, goal=Goal(0.45)),
    ]
    floor = Floor(plain_bytes(logits, planes, softmax=False), COPY, logits.nbytes)
    return Case(f"Dice + BCE, overlapping, {_shape(logits)}", MONAI, contenders, _mib(logits), floor)


def upsampled_case(settings: Settings, classes: int, n: int, goal: float) -> Case:
    """Bilinear upsampling by four, then Dice + cross-entropy; the gradient is that of the coarse logits."""
    n, classes, (h, w) = (2, 5, (12, 20)) if settings.small else (n, classes, (128, 128))
    size_hw = 4 * h, 4 * w
    coarse = random_logits(n, classes, (h, w)).to(settings.device).requires_grad_()
    planes = class_planes(n, classes, size_hw).to(settings.device)
    narrow = planes.to(torch.int16)

    def upsampled(loss: Loss) -> Loss:
        return lambda low, target: loss(F.interpolate(low, size_hw, mode="bilinear", align_corners=False), target)

    def fused() -> Loss:
        loss = segkit_loss(classes)
        return lambda low, target: loss(CoarseLogits(low, size_hw, align_corners=False), target)

    contenders = [
        _contender(NNUNET, lambda: upsampled(nnunet_loss()), coarse, narrow, offset=1.0),
        _contender("segkit, interpolated first", lambda: upsampled(segkit_loss(classes)), coarse, planes),
        _contender("segkit", fused, coarse, planes, goal=Goal(goal)),
    ]
    floor = Floor(upsampled_bytes(coarse, planes, softmax=True), UPSAMPLED_COPY, 16 * coarse.nbytes)
    baseline = NNUNET
    if settings.device.type == "cuda":
        baseline = COMPILED
        compiled = _contender(COMPILED, lambda: torch.compile(upsampled(nnunet_loss())), coarse, narrow, offset=1.0)
        contenders = [replace(c, goal=_goal(c, 0.25)) for c in (compiled, *contenders)]
        # The coarse logits would be copied from one place of the cache to another, which is no bandwidth of the memory.
        contenders.append(Contender(UPSAMPLED_COPY, lambda: _copying(coarse.new_zeros((n, classes, *size_hw)))))
    title = f"x4 upsampling + Dice + CE, {_shape(coarse)}"
    return Case(title, baseline, contenders, _mib(coarse) * 16, floor)


# Functions of the settings, by the name under which a fresh process finds them.
CASES: dict[str, Callable[[Settings], Case]] = {
    "exclusive": exclusive_case,
    # The layout in which segkit, and whoever else trains channels_last, hands the logits over.
    "exclusive-channels-last": lambda settings: exclusive_case(settings, layout=torch.channels_last),
    "exclusive-150": lambda settings: exclusive_case(settings, classes=150, n=16),
    "exclusive-150-bf16": lambda settings: exclusive_case(settings, classes=150, n=16, dtype=torch.bfloat16),
    "overlapping": overlapping_case,
    "upsampled-19": lambda settings: upsampled_case(settings, classes=19, n=4, goal=0.60),
    "upsampled-150": lambda settings: upsampled_case(settings, classes=150, n=2, goal=0.75),
}


# The losses ------------------------------------------------------------------------------------------------


def segkit_loss(classes: int) -> Loss:
    return build_loss({"cross_entropy": 1, "dice": 1}, MaskFormat.multiclass(range(classes)))


def segkit_overlapping_loss(classes: int) -> Loss:
    return build_loss({"cross_entropy": 1, "dice": 1}, MaskFormat.multilabel(range(classes)))


def nnunet_loss() -> nn.Module:
    """As `nnUNetTrainer` builds it, but for the background, which it leaves out; the value lacks a constant 1.

    Its data loader hands out targets in int16.
    """
    compound = peer("nnunetv2", "nnunetv2.training.loss.compound_losses")
    dice = peer("nnunetv2", "nnunetv2.training.loss.dice")
    options = {"batch_dice": True, "smooth": 1.0, "do_bg": True, "ddp": False}
    return compound.DC_and_CE_loss(options, {}, dice_class=dice.MemoryEfficientSoftDiceLoss)


def nnunet_overlapping_loss() -> nn.Module:
    compound = peer("nnunetv2", "nnunetv2.training.loss.compound_losses")
    return compound.DC_and_BCE_loss({}, {"batch_dice": True, "smooth": 1.0, "do_bg": True, "ddp": False})


def smp_loss() -> Loss:
    dice = peer("segmentation-models-pytorch", "segmentation_models_pytorch.losses").DiceLoss("multiclass", smooth=1.0)
    return lambda logits, target: dice(logits, target) + F.cross_entropy(logits, target)


def smp_overlapping_loss() -> Loss:
    smp = peer("segmentation-models-pytorch", "segmentation_models_pytorch.losses")
    dice, bce = smp.DiceLoss("multilabel", smooth=1.0), smp.SoftBCEWithLogitsLoss()
    return lambda logits, target: dice(logits, target) + bce(logits, target)


def monai_loss() -> nn.Module:
    options = {"softmax": True, "to_onehot_y": True, "batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    return peer("monai", "monai.losses").DiceCELoss(**options)


def monai_overlapping_loss() -> Loss:
    monai = peer("monai", "monai.losses")
    dice, bce = monai.DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0), nn.BCEWithLogitsLoss()
    return lambda logits, target: dice(logits, target) + bce(logits, target)


# Measuring -------------------------------------------------------------------------------------------------


def _time(command: str, case: Case, settings: Settings) -> Row:
    row = time_row(command, case.title, case.baseline, case.contenders, settings, tolerance=case.tolerance)
    # On the CPU the definition in plain PyTorch runs, which moves other bytes.
    return with_floor(row, case.floor) if case.floor is not None and settings.device.type == "cuda" else row


def memory_row(command: str, name: str, case: Case, settings: Settings) -> Row:
    """Whole processes in turns; memory hardly varies, so three rounds say all."""
    entries = [Entry(c.name, goal=c.goal) for c in case.contenders]
    title = f"peak memory, {case.title}"
    for _ in rounds_of(title, replace(settings, rounds=min(3, settings.rounds))):
        for entry in entries:
            if entry.absent is None:
                try:
                    entry.samples.append(peak_mib(name, entry.name, settings))
                except Absent as reason:
                    entry.absent = str(reason)
    return Row(command, title, "MiB", entries, case.baseline).relate()


def _contender(
    name: str,
    make: Callable[[], Loss],
    logits: Tensor,
    target: Tensor,
    *,
    offset: float = 0.0,
    goal: Goal | None = None,
) -> Contender:
    """Forward and backward of a loss, whose value plus `offset` is that of all others."""
    return Contender(
        name,
        lambda: _backward(make(), logits, target),
        goal,
        lambda returned: [returned[0] + offset, returned[1]],
    )


def _copy_of(logits: Tensor) -> Contender:
    """What moving the numbers costs: one read and one write."""
    return Contender(COPY, lambda: _copying(logits.detach()))


def _copying(logits: Tensor) -> Run:
    return lambda: torch.empty_like(logits).copy_(logits)


def _backward(loss: Loss, logits: Tensor, target: Tensor) -> Run:
    """A call that gives the loss and the gradient; nothing is accumulated, and nothing of the last call is left."""
    half = logits.dtype != torch.float32
    context: Any = torch.autocast(logits.device.type, logits.dtype) if half else nullcontext()

    def run() -> tuple[Tensor, Tensor]:
        with context:
            value = loss(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
        return value.detach(), gradient

    return run


def _goal(contender: Contender, limit: float) -> Goal | None:
    return None if contender.goal is None else Goal(limit)


def _mib(tensor: Tensor) -> float:
    return tensor.numel() * tensor.element_size() / _MIB


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
