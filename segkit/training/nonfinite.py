"""A loss or weights that are no numbers end training, before they reach a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from segkit.data.sample import Batch
from segkit.formats.files import write_whole

# Batches between two looks at the losses on a GPU: what runs on after a bad one are seconds, and to wait for the device
# once in so many steps costs nothing that can be measured.
_EVERY = 50
_SHOWN = 8


@dataclass(frozen=True)
class _Step:
    """One batch of this process, and its loss where it was computed."""

    epoch: int
    batch: int
    step: int
    stems: list[str]
    loss: Tensor


class FiniteLoss(Callback):
    """Ends training when the loss of a batch, or a weight, is NaN or infinite, and writes down the samples.

    On a CPU each loss is looked at before its gradients are computed. Elsewhere that would make the processor wait for
    the device at every step: losses stay there, and are looked at together every 50 batches, before each validation and
    before each checkpoint. Weights are looked at before a validation and a checkpoint, so that neither a bundle nor a
    checkpoint holds broken ones. All processes end alike. Gradients that overflow in float16 are no mistake: the
    gradient scaler leaves such a step out.

    Args:
        report: JSON file that is written when it happens, and removed when a run starts.
        checkpoint: file that the run can be resumed from, if it is there; for the message.
    """

    def __init__(self, report: Path, checkpoint: Path) -> None:
        self.report, self.checkpoint = report, checkpoint
        self._batch: Batch | None = None
        self._number = 0
        self._steps: list[_Step] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.report.unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch, self._number = batch, batch_idx

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if module.device.type == "cpu":
            self._remember(trainer, loss)
            self._look_at_losses(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        if module.device.type != "cpu":
            self._remember(trainer, outputs["loss"])
            if len(self._steps) >= _EVERY:
                self._look_at_losses(trainer, module)
        self._batch = None  # its memory is free for the next

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._look_at_all(trainer, module)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look_at_all(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._look_at_all(trainer, module)

    def _remember(self, trainer: L.Trainer, loss: Tensor) -> None:
        assert self._batch is not None
        here = trainer.current_epoch, self._number, trainer.global_step
        self._steps.append(_Step(*here, self._batch.stems, loss.detach()))

    def _look_at_all(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._look_at_losses(trainer, module)
        if _any_rank(trainer, not _all_finite(module)):
            self._stop(trainer, module, self._steps[-1] if self._steps else None, of_weights=True)

    def _look_at_losses(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leaves the steps since the last update of the weights, which a broken weight comes from."""
        finite = torch.stack([step.loss for step in self._steps]).isfinite().tolist() if self._steps else []
        if _any_rank(trainer, not all(finite)):
            self._stop(trainer, module, self._steps[finite.index(False)] if not all(finite) else None, of_weights=False)
        del self._steps[: -trainer.accumulate_grad_batches]

    def _stop(self, trainer: L.Trainer, module: L.LightningModule, step: _Step | None, of_weights: bool) -> None:
        """Every process comes here with its first bad step, if it has one."""
        found = None
        if step is not None:
            found = {
                "rank": trainer.global_rank,
                "epoch": step.epoch,
                "batch": step.batch,
                "step": step.step,
                # Lightning has divided it, for gradients that are summed. JSON has no NaN.
                "loss": str(step.loss.item() * trainer.accumulate_grad_batches),
                "terms": None if of_weights else self._terms(trainer, module),
                "stems": step.stems,
            }
        all_found = [one for one in _gather(trainer, found) if one is not None]
        # The first of all ranks came first; the others may have got it from its gradients.
        first = min((one["epoch"], one["batch"]) for one in all_found) if all_found else None
        facts = {
            "found": "weights" if of_weights else "loss",
            "at": [one for one in all_found if (one["epoch"], one["batch"]) == first],
            "batches": int(trainer.num_training_batches),
            "lr": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
            "precision": str(trainer.precision),
            "world_size": trainer.world_size,
            "settings": module.settings.model_dump(),  # type: ignore[union-attr, operator]
            "checkpoint": str(self.checkpoint) if self.checkpoint.is_file() else None,
        }
        if trainer.is_global_zero:
            write_whole(self.report, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
        raise ValueError(_text(facts, self.report))

    def _terms(self, trainer: L.Trainer, module: Any) -> dict[str, str] | None:
        """Each term of the loss, from the same batch and weights; None once the weights have moved on."""
        if self._batch is None or not hasattr(module.loss, "terms") or module.device.type != "cpu":
            return None
        module.on_train_batch_start(self._batch, self._number)  # draws what was drawn before
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            terms = module.loss.terms(module.model(self._batch.images, coarse=True), self._batch.target)
        return {name: str(float(value)) for name, value in terms.items()}


def _all_finite(module: torch.nn.Module) -> bool:
    """Whether no weight or running statistic of this rank's share is NaN or infinite. Waits for the device once."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]
    weights = [p.detach() for p in module.parameters()] + [b for norm in norms for b in norm.buffers(recurse=False)]
    weights = [w.to_local() if hasattr(w, "to_local") else w for w in weights]  # a share of FSDP
    weights = [w for w in weights if w.numel() and w.is_floating_point()]
    largest = torch._foreach_norm(weights, ord=math.inf)
    return bool(torch.stack([value.float() for value in largest]).isfinite().all()) if largest else True


def _any_rank(trainer: L.Trainer, found: bool) -> bool:
    return found if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(found, all=False)


def _gather(trainer: L.Trainer, found: Any) -> list[Any]:
    if trainer.world_size == 1:
        return [found]
    everything: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everything, found)
    return everything


def _text(facts: Mapping[str, Any], report: Path) -> str:
    settings = facts["settings"]
    where, stems = "", [stem for one in facts["at"] for stem in one["stems"]]
    if facts["at"]:
        one = facts["at"][0]
        where = f" in epoch {one['epoch'] + 1}, batch {one['batch'] + 1} of {facts['batches']}"
    shown = ", ".join(stems[:_SHOWN]) + (", ..." if len(stems) > _SHOWN else "")
    if facts["found"] == "loss":
        what = f"the training loss is {facts['at'][0]['loss']}{where}"
        terms = facts["at"][0]["terms"]
        if terms:
            what += f" ({', '.join(f'{name} {value}' for name, value in terms.items())})"
        what += f", of the samples {shown}"
    else:
        what = f"weights are NaN or infinite{where.replace(' in', ' after', 1)}" + (f" ({shown})" if shown else "")
    ways = ["look at these samples (`segkit inspect`)", f"a lower train.lr than {settings['lr']}, in a new run"]
    if facts["precision"].startswith("16"):
        ways.insert(0, "train.precision: bf16-mixed or 32-true, as float16 ends at 65504")
    if settings["clip_norm"] is None:
        ways.append("train.clip_norm: 1")
    kept = (
        f"{facts['checkpoint']} is from before and can be resumed, with what was changed in config.yaml but for the "
        "learning rate, which is the checkpoint's."
        if facts["checkpoint"]
        else "No checkpoint was written yet."
    )
    return f"{what}. Training stopped; {report} has the details. Ways out: {'; '.join(ways)}. {kept}"
