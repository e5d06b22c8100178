"""Whole training steps: segkit against bare segmentation-models-pytorch, and what a toolkit adds around them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from benchmarks.losses import segkit_loss, smp_loss
from benchmarks.networks import Work, channels_last, works
from benchmarks.rows import Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from benchmarks.trainers import against_lightning, overhead, random_batch
from segkit.training.optimizer import build_optimizer
from segkit.training.step import training_loss


def step(settings: Settings) -> list[Row]:
    """Forward, loss, backward and AdamW with segkit and without; segkit's `fit` beside a loop and SMP + Lightning."""
    if settings.small:
        settings = replace(settings, rounds=1)
    measured = works(settings)
    rows = [_against_smp(work, settings) for work in measured]
    rows.append(overhead(measured[0], settings))
    return rows + [against_lightning(work, settings) for work in measured]


def segkit_step(work: Work, settings: Settings) -> Run:
    """A call that takes one training step of segkit, with a batch that lies on the device."""
    model, loss = work.segkit_model(settings.device), segkit_loss(work.classes)
    images, planes = random_batch(work, settings.device)
    return _stepper(lambda: training_loss(model, loss, images, planes), build_optimizer(model, 1e-4), settings)


def _against_smp(work: Work, settings: Settings) -> Row:
    images, planes = random_batch(work, settings.device)

    def bare(last: bool, compiled: bool = False) -> Run:
        network = work.smp_model(settings.device)
        # Normalised float32 images, as its users' data loaders hand them out.
        ready = (images.float() - 120.0) / 58.0
        if last:
            network, ready = channels_last(network), ready.contiguous(memory_format=torch.channels_last)
        forward = torch.compile(network) if compiled else network
        loss, indices = smp_loss(), planes[:, 0].long()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        return _stepper(lambda: loss(forward(ready), indices), optimizer, settings)

    contenders = [
        Contender("SMP", lambda: bare(last=False)),
        Contender("SMP, channels_last", lambda: bare(last=True)),
        Contender("segkit", lambda: segkit_step(work, settings), Goal(0.90)),
    ]
    if settings.device.type == "cuda":
        contenders.insert(2, Contender("SMP, channels_last, compiled", lambda: bare(True, compiled=True)))
    return time_row("step", f"training step, {work}", "SMP", contenders, settings)


def _stepper(loss: Any, optimizer: torch.optim.Optimizer, settings: Settings) -> Run:
    """A call that takes one optimizer step; bf16 on CUDA, as both sides' users train there."""
    cuda = settings.device.type == "cuda"

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            value = loss()
        value.backward()
        optimizer.step()

    return run
