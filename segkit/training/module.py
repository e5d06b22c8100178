"""The Lightning module: what happens in a training step and in a validation step."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from segkit.data.datasets import MaskDataset
from segkit.data.device_data import DeviceDataset, device_train_loader
from segkit.data.loaders import eval_loader, train_loader
from segkit.data.prefetch import DeviceLoader
from segkit.data.sample import Batch
from segkit.metrics.counts import PixelCounts
from segkit.metrics.scores import Scores
from segkit.models.segmenter import Segmenter
from segkit.models.statistics import PixelStatistics
from segkit.training.auxiliary import AuxiliaryHeads
from segkit.training.distributed import share_buffers
from segkit.training.mixing import Mixer
from segkit.training.optimizer import build_optimizer, build_schedule
from segkit.training.settings import MONITORS, TrainSettings
from segkit.training.sharding import ShardedStrategy, hold_shares, hold_whole, shard
from segkit.training.step import image_losses, training_loss

# Settings that a resumed run takes from its checkpoint, by way of groups and moments of the optimizer.
_OF_THE_CHECKPOINT = (
    "optimizer",
    "lr",
    "weight_decay",
    "encoder_lr_factor",
    "layer_decay",
    "schedule",
    "deep_supervision",
)


def with_clip(train: MaskDataset, statistics: PixelStatistics) -> MaskDataset:
    """The same samples; the augmentation knows what the model clips, see `segkit.data.intensity.clipped`."""
    if statistics.clip is None or not hasattr(train.augment, "clip"):
        return train
    told = copy.copy(train)
    told.augment = copy.copy(train.augment)
    told.augment.clip = statistics.clip  # type: ignore[union-attr]
    return told


class SegmentationModule(L.LightningModule):
    """Trains a `Segmenter` and scores it on validation images.

    Logs `loss` per step, and per epoch `train_loss` (its mean), `val_loss` and the scores of `MONITORS`; the
    monitored one stands in the progress bar. With `data_on_device` the training set lies there as a whole.
    """

    def __init__(
        self,
        model: Segmenter,
        loss: nn.Module,
        train: MaskDataset,
        val: MaskDataset | None,
        settings: TrainSettings,
        data_on_device: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.settings = settings
        weight = settings.deep_supervision
        self.auxiliary = None if weight is None else AuxiliaryHeads(model, weight, settings.seed)
        self.mixer = Mixer(settings.mix, model.format, settings.seed)
        self.counts = PixelCounts(model.format)
        # Of the epoch so far; ours, as Lightning's own means are in no checkpoint. It would look for NaN at every step.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.scores: Scores | None = None
        self.scored_epoch: int | None = None
        self._train, self._val, self._data_on_device = train, val, data_on_device
        self._train_on_device: DeviceDataset | None = None
        self._val_losses: list[Tensor] = []

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            shard(self.model.network, strategy.device_mesh["data_parallel"])

    # Data ----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader | DeviceLoader:
        plan, place = self.settings, self.trainer.strategy.root_device
        train = with_clip(self._train, self.model.statistics)
        order: dict[str, Any] = {"seed": plan.seed, "repeat": plan.repeat}
        order |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        if self._data_on_device:
            if self._train_on_device is None:  # asked for more than once
                self._train_on_device = DeviceDataset(train, place, workers=plan.workers)
            data = self._train_on_device
            return device_train_loader(data, plan.known_batch_size, **order)
        return DeviceLoader(train_loader(train, plan.known_batch_size, workers=plan.workers, **order), place)

    def val_dataloader(self) -> DeviceLoader | list:
        if self._val is None:
            return []
        loader = eval_loader(
            self._val,
            self.settings.known_batch_size,
            workers=self.settings.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DeviceLoader(loader, self.trainer.strategy.root_device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # `DeviceLoader` brought it there

    # Training ------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._always_score_the_last_epoch()  # a run resumed inside it has no `on_train_epoch_start`

    def on_train_epoch_start(self) -> None:
        self._always_score_the_last_epoch()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on nothing else, so a resumed run draws the same, and loaders may draw what they like.
        seed = hash((self.settings.seed, self.current_epoch, batch_idx, self.global_rank)) & 0x7FFFFFFF
        # torch.manual_seed would do this for all kinds of devices, and takes hundreds of times as long without a GPU.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        key = self.current_epoch, batch_idx, self.global_rank
        images, target = self.mixer(batch.images, batch.target, key)
        loss = training_loss(self.model, self.loss, images, target, self.auxiliary)
        self.log("loss", loss.detach(), prog_bar=True)
        # Filled on the device: a number would be copied there, which waits for all that it computes.
        self.train_loss.update(loss.detach(), torch.full_like(loss, len(batch), requires_grad=False))
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.train_loss.compute())
        self.train_loss.reset()

    def _always_score_the_last_epoch(self) -> None:
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def configure_optimizers(self) -> Any:
        plan = self.settings
        optimizer = build_optimizer(
            self.model,
            plan.lr,
            plan.encoder_lr_factor,
            plan.weight_decay,
            name=plan.optimizer,
            layer_decay=plan.layer_decay,
            beside=self.auxiliary.parameters() if self.auxiliary is not None else (),
        )
        # From the loader itself: Lightning's estimated_stepping_batches would start it and disturb its state.
        batches = len(self.train_dataloader())
        steps = -(-batches // plan.accumulate) * plan.epochs
        scheduler = build_schedule(optimizer, plan.schedule, steps, plan.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # No part of the state dict, so that weights stay interchangeable with the bare network's.
        checkpoint["statistics"] = asdict(self.model.statistics)
        checkpoint["began_with"] = {name: getattr(self.settings, name) for name in _OF_THE_CHECKPOINT}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, before in checkpoint.get("began_with", {}).items():
            if (now := getattr(self.settings, name)) != before:
                raise ValueError(
                    f"{name} is {now!r}, but the run that is to be resumed has {before!r}, which is part of the state "
                    "of its optimizer: resume with that, or start a new run."
                )
        self.model.statistics = PixelStatistics(**checkpoint["statistics"])
        self._train_on_device = None  # it would be clipped as the model did before

    # Validation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        share_buffers(self.model)
        hold_whole(self.model.network)
        self.counts.reset()
        self._val_losses = []

    def validation_step(self, parts: list[Batch], batch_idx: int) -> dict[str, list[Tensor]]:
        decoded = []
        for part in parts:
            logits = self.model.predict_coarse_logits(part.images, part.spacing_mm)
            decoded.append(self.model.format.decode(logits))
            self._val_losses.append(image_losses(self.loss, logits, part.target).sum())
            self.counts.update(decoded[-1], part.target, part.indices)
        return {"pred": decoded}  # callbacks look at them before the next batch

    def on_validation_epoch_end(self) -> None:
        self.scores = Scores(self.counts.compute())
        self.scored_epoch = self.current_epoch
        means = self.scores.means()
        for name in MONITORS[:-1]:
            # A mean over no class at all, where every pixel is ignored, is as bad as can be.
            self.log(name, means[name] or 0.0, prog_bar=name == self.settings.monitor)
        images = max(1, len(self._val))  # type: ignore[arg-type]
        total = torch.stack(self._val_losses).sum() if self._val_losses else torch.zeros((), device=self.device)
        hold_shares(self.model.network)
        # A rank may have no image at all, so that a mean over ranks says nothing.
        self.log("val_loss", self.trainer.strategy.reduce(total, reduce_op="sum") / images)
