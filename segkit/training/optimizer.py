"""The optimizer and its groups of parameters, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from segkit.models.encoder_stages import encoder_of, encoder_stages
from segkit.models.segmenter import Segmenter
from segkit.training.named_optimizers import make_optimizer


def build_optimizer(
    model: Segmenter,
    lr: float,
    encoder_lr_factor: float | None = None,
    weight_decay: float = 0.01,
    *,
    name: str | Mapping[str, Any] = "adamw",
    layer_decay: float | None = None,
    beside: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer with lower rates for an encoder that has learned before.

    Args:
        lr: peak learning rate of decoder and head.
        encoder_lr_factor: the encoder's rate as a share of `lr`; None is 0.3 for a pretrained encoder, else 1. With
            `layer_decay` None is 1 for all, as rates fall without it.
        weight_decay: of weights of convolutions and matrices; biases and normalisation layers have none.
        name: see `make_optimizer`; the default is AdamW (Loshchilov & Hutter 2019).
        layer_decay: in (0, 1], rate of a stage of the encoder as a share of that of the next, see `encoder_stages`
            (Clark et al. 2020; BEiT, Bao et al. 2022). The last stage has this share of the decoder's rate.
        beside: parameters that are no part of `model`, such as those of auxiliary heads, at the rate of the decoder.

    Raises:
        ValueError: nothing that would be trained; see also `make_optimizer` and `encoder_stages`.
    """
    if encoder_lr_factor is None:
        encoder_lr_factor = 0.3 if model.pretrained and layer_decay is None else 1.0
    encoder = encoder_of(model)
    if layer_decay is not None:
        stages, decay = encoder_stages(model), layer_decay
    else:
        stages, decay = [list(encoder.parameters())] if encoder is not None else [], 1.0
    parts = [(lr * encoder_lr_factor * decay ** (len(stages) - i), stage) for i, stage in enumerate(stages)]
    in_encoder = {id(p) for stage in stages for p in stage}
    parts.append((lr, [*(p for p in model.parameters() if id(p) not in in_encoder), *beside]))
    groups = []
    for rate, part in parts:
        trained = [p for p in part if p.requires_grad]
        groups.append({"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ValueError("nothing to train: no parameter of the model has requires_grad. Unfreeze some.")
    rates = sorted({rate for rate, part in parts if any(p.requires_grad for p in part)})
    # In float32, as weights are, all of a smaller step is rounded away.
    if rates[-1] < torch.finfo(torch.float32).tiny:
        raise ValueError(
            f"the learning rates are {rates}, zero throughout for float32 weights: give a larger `train.lr`."
        )
    return make_optimizer(name, groups, lr)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def poly(progress: float) -> float:
    """(1 - progress)^0.9, the schedule of DeepLab (Chen et al. 2017)."""
    return (1.0 - progress) ** 0.9


def constant(progress: float) -> float:
    """The same rate to the end."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "poly": poly, "constant": constant}
ONE_CYCLE = "one_cycle"


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, total_steps: int, warmup: float | None = None
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up to the peak rate, then the named schedule down to the last of `total_steps`.

    `cosine`, `poly` and `constant` rise linearly. `one_cycle` (Smith & Topin 2018) is torch's `OneCycleLR`: half a
    cosine up from 1/25 of the peak and another down to almost nothing, while the momentum goes from 0.95 to 0.85 and
    back, beta1 with Adam.

    Args:
        optimizer: its groups hold the peak rates.
        name: of `SCHEDULES`, or `one_cycle`.
        warmup: share of all steps over which the rate rises, in [0, 1); None is 0.3 for `one_cycle`, else 0.05.
    """
    if name == ONE_CYCLE:
        return _one_cycle(optimizer, total_steps, 0.3 if warmup is None else warmup)
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: expected one of {', '.join((*SCHEDULES, ONE_CYCLE))}.")
    shape = SCHEDULES[name]
    warmup_steps = round((0.05 if warmup is None else warmup) * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return shape(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class _OneCycle(torch.optim.lr_scheduler.OneCycleLR):
    """torch's, which after the last step would rise again or fail.

    A run that is resumed with another number of epochs has its new number of steps, as with other schedules.
    """

    def get_lr(self) -> list[Any]:
        step, self.last_epoch = self.last_epoch, min(self.last_epoch, self.total_steps - 1)
        try:
            return super().get_lr()
        finally:
            self.last_epoch = step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ("total_steps", "_schedule_phases")})


def _one_cycle(optimizer: torch.optim.Optimizer, total_steps: int, warmup: float) -> _OneCycle:
    # An optimizer without momentum keeps without; torch takes beta1 of Adam and its kin for momentum.
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0.0) > 0.0
    return _OneCycle(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        # A little more: a rise of one step exactly is one of length 0, by which torch would divide.
        pct_start=min(1.0, float(warmup) * (1.0 + 1e-9)),
        cycle_momentum=has_momentum,
    )
