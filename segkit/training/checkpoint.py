"""Checkpoints of a run: when they are written, what they hold, and how they reach the disk."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from segkit.formats.files import writing_whole
from segkit.training.preemption import Preempted

log = logging.getLogger("segkit")

# What decides which images a step sees, and what a person calls it.
_ORDER = {
    "images": "the number of training images",
    "seed": "train.seed",
    "repeat": "train.repeat",
    "step_images": "train.batch_size times processes",
}


class DurableFiles(TorchCheckpointIO):
    """Writes a checkpoint whole, and down to the disk, before it takes the place of the last one.

    Attributes:
        failure: why the last one could not be written, as on a full disk; None if it was. Training goes on then, and
            the file before it is kept.
    """

    failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        try:
            write_durably(path, content.getbuffer())
            self.failure = None
        except OSError as error:
            self.failure = error.strerror or str(error)
            kept = "the one before it is kept" if path.is_file() else "there is none before it"
            step = checkpoint["global_step"]
            log.warning("%s: step %d was not saved (%s); %s. Training goes on.", path, step, self.failure, kept)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is whole after a crash of the machine too, or not there."""
    with writing_whole(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # The new name is safe when the folder is; systems that cannot open folders have no need.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunCheckpoint(Checkpoint):
    """Keeps `path` the state of the run after the last epoch, every so many optimizer steps, and on SIGTERM.

    What training draws at random is a function of seed, epoch and number of the sample or batch, so no random state
    is kept: the position is enough. It counts batches that were trained on, whatever loaders have read ahead. A
    validation is not saved half done; a checkpoint before it does it again.

    Args:
        files: the plugin of the trainer that writes.
        every_steps: optimizer steps from one checkpoint to the next; None saves after epochs alone.
        tell: gets one line when the run is preempted.
    """

    def __init__(
        self, path: Path, files: DurableFiles, every_steps: int | None = None, tell: Callable[[str], None] = print
    ) -> None:
        self.path, self.files, self.every_steps, self.tell = path, files, every_steps, tell
        self._asked_to_stop = False
        # In which processes agree on the CPU: each step would wait for the GPU to reduce a number there.
        self._agreeing: Any = None
        self._position: dict[str, Any] = {"batches": 0}
        self._resumed: dict[str, Any] | None = None

    # When -----------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        is_last = done >= trainer.num_training_batches
        if not is_last and done % trainer.accumulate_grad_batches:
            return  # gradients wait for more batches
        if trainer.should_stop or (is_last and not _validates(trainer)):
            return  # the epoch ends now, and is saved then
        preempted = self._preempted(trainer)
        if preempted or (self.every_steps is not None and trainer.global_step % self.every_steps == 0):
            self._save(trainer, module, batches=done)
        if preempted:
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        # Ranks have different numbers of images to score, so they cannot agree here: several go on to the end.
        if self._asked_to_stop and trainer.world_size == 1:
            self._save(trainer, module, batches=trainer.fit_loop.epoch_loop.batch_progress.current.ready)
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, module, batches=0, epoch=trainer.current_epoch + 1)
        if self._preempted(trainer):
            self._leave(trainer)

    def _preempted(self, trainer: L.Trainer) -> bool:
        if trainer.world_size == 1:
            return self._asked_to_stop
        asked = torch.tensor(int(self._asked_to_stop))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._agreeing)
        return bool(asked)

    def _leave(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.files.failure is None:
            self.tell(f"stopped by SIGTERM: saved after step {trainer.global_step}, ready to be resumed")
        raise Preempted

    # What -----------------------------------------------------------------------------------------------

    def _save(self, trainer: L.Trainer, module: L.LightningModule, batches: int, epoch: int | None = None) -> None:
        mean: Any = module.train_loss
        own = torch.stack([mean.mean_value, mean.weight])
        sums = trainer.strategy.all_gather(own).reshape(-1, 2).cpu()  # a row for each rank
        self._position = {
            "epoch": trainer.current_epoch if epoch is None else epoch,
            "batches": batches,
            "order": _order(trainer),
            "train_loss": sums,
            "should_stop": trainer.should_stop,
        }
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["position"] = self._position
        if 0 < trainer.num_training_batches <= self._position["batches"]:
            _expect_validation(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["position"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Lightning, which restores the handler of before at the end, would leave at the next batch without saving.
        self._asked_to_stop = trainer.received_sigterm
        if trainer.world_size > 1:
            self._agreeing = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask_to_stop)
        if self._resumed is None:
            return
        # Now: Lightning has asked the loader for its length, and not yet for a batch.
        loader: Any = trainer.train_dataloader
        position, self._resumed = self._resumed, None
        if position["batches"]:
            self._check_order(position["order"], _order(trainer))
        loader.sampler.set_epoch(position["epoch"], start=position["batches"] * loader.batch_sampler.batch_size)
        trainer.should_stop = position["should_stop"]
        mean: Any = module.train_loss
        mean.update(0.0)  # a mean that was never updated warns
        sums = position["train_loss"].to(module.device)
        if len(sums) != trainer.world_size:  # other processes: all that was summed is the share of the first
            sums = torch.cat([sums.sum(0, keepdim=True), sums.new_zeros(trainer.world_size - 1, 2)])
        mean.mean_value, mean.weight = sums[trainer.global_rank]

    def _check_order(self, before: dict[str, int], now: dict[str, int]) -> None:
        """A position within an epoch means nothing in another order of images."""
        for name, what in _ORDER.items():
            if now[name] != before[name]:
                raise ValueError(
                    f"{self.path}: saved within an epoch, where {what} was {before[name]}; now it is {now[name]}. "
                    "Resume with what it was, or from the end of an epoch."
                )

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._asked_to_stop = True


def clear_leftovers(run: Path) -> None:
    """Remove what a killed run left half written in its folder; a bundle that was being replaced is put back."""
    for part in (run / "checkpoints").glob(".*.part"):
        part.unlink(missing_ok=True)
    for folder in sorted(run.glob(".model-*")):
        if (folder / "bundle").is_dir() and not (run / "model").exists():
            os.replace(folder / "bundle", run / "model")
        shutil.rmtree(folder, ignore_errors=True)


def _order(trainer: L.Trainer) -> dict[str, int]:
    """What decides which images a step sees."""
    loader: Any = trainer.train_dataloader
    sampler = loader.sampler
    step_images = loader.batch_sampler.batch_size * trainer.world_size
    return {"images": sampler.length, "seed": sampler.seed, "repeat": sampler.repeat, "step_images": step_images}


def _validates(trainer: L.Trainer) -> bool:
    """Whether a validation follows the current epoch."""
    every = trainer.check_val_every_n_epoch or 1
    return trainer.enable_validation and (trainer.current_epoch + 1) % every == 0


def _expect_validation(loops: dict[str, Any]) -> None:
    """Tell the loops of a checkpoint that all batches of the epoch are done and its validation was not begun.

    Left as they are, Lightning would resume with the next epoch. One batch of validation that was started and not
    processed is how it knows a validation that it has to run.
    """
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"] = counts["ready"]
    batches["is_last_batch"] = True
    scored = loops["epoch_loop.val_loop.batch_progress"]
    scored["current"] = dict.fromkeys(scored["current"], 0)
    scored["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    scored["is_last_batch"] = False
