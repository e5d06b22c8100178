"""A trainer that leaves no files, for what is found out by training a copy of the model for a few steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.models.segmenter import Segmenter
from segkit.training.distributed import environments
from segkit.training.engine import determinism_restored, quiet_lightning, stops_translated, trainer_options
from segkit.training.module import SegmentationModule
from segkit.training.settings import TrainSettings


@contextmanager
def probe(
    model: Segmenter,
    loss: nn.Module,
    train: MaskDataset,
    val: MaskDataset | None,
    settings: TrainSettings,
    data_on_device: bool = False,
) -> Iterator[SegmentationModule]:
    """What `fit` trains, over a copy of `model`, which stays as it is.

    Raises:
        Preempted: SIGTERM came within the block; nothing is saved.
    """
    model = copy.deepcopy(model)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()
    module = SegmentationModule(model, loss, train, val, settings, data_on_device=data_on_device)
    with quiet_lightning(), determinism_restored(), stops_translated():
        try:
            yield module
        finally:
            if module.auxiliary is not None:
                module.auxiliary.release()


def probe_trainer(settings: TrainSettings, place: torch.device, steps: int, **options: Any) -> L.Trainer:
    """Trains in one process for so many optimizer steps, as `fit` would; options are those of `lightning.Trainer`."""
    return L.Trainer(
        **trainer_options(settings, place),
        devices=1 if place.index is None else [place.index],
        max_steps=steps,
        max_epochs=-1,
        plugins=environments(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **options,
    )
