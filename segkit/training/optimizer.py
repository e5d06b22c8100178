"""AdamW over two groups of parameters, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from segkit.models.segmenter import Segmenter


def build_optimizer(
    model: Segmenter, lr: float, encoder_lr_factor: float | None = None, weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with a lower rate for an encoder that has learned before.

    Args:
        lr: peak learning rate of decoder and head.
        encoder_lr_factor: the encoder's rate as a share of `lr`; None is 0.3 for a pretrained encoder, else 1.
        weight_decay: of weights of convolutions and matrices; biases and normalisation layers have none.
    """
    if encoder_lr_factor is None:
        encoder_lr_factor = 0.3 if model.pretrained else 1.0
    encoder = getattr(model.network, "encoder", None)
    in_encoder = {id(p) for p in encoder.parameters()} if isinstance(encoder, nn.Module) else set()
    groups = []
    for rate, belongs in ((lr * encoder_lr_factor, True), (lr, False)):
        parameters = [p for p in model.parameters() if p.requires_grad and (id(p) in in_encoder) == belongs]
        groups.append({"params": [p for p in parameters if p.ndim > 1], "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)


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


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, total_steps: int, warmup_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up to the peak rate, then the named schedule down to the last of `total_steps`."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: expected one of {', '.join(SCHEDULES)}.")
    shape = SCHEDULES[name]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return shape(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
