"""One batch of everything that training does, and the plan of the whole run: sizes, steps, time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from segkit.config import Experiment
from segkit.data.loaders import SeededSampler
from segkit.data.memory import peak_memory
from segkit.experiment import Prepared, draw_pictures, prepare, scored_last, write_json
from segkit.models.devices import pick_device
from segkit.processes import started_by_launcher
from segkit.training.distributed import count_processes
from segkit.training.fit import fit
from segkit.training.run_callbacks import CHECKPOINT
from segkit.training.settings import TrainSettings

# Batches before times count: memory is taken, kernels are chosen, workers start.
_WARM_UP, _TIMED = 2, 5
_VALIDATED = 4
# These tell a service of a run.
_REMOTE = ("wandb", "mlflow")


def show_plan(config: Experiment, json: Path | None, progress: Any) -> None:
    """What `segkit train --dry-run` does: print the plan, and write it to `json`."""
    plan = dry_run(config, progress=progress)
    table = Table(title="plan", show_header=False)
    for what, how_much in plan_rows(plan):
        table.add_row(what, how_much)
    Console().print(table)
    if json is not None:
        write_json(json, plan)


def dry_run(config: Experiment, *, tell: Callable[[str], None] = print, progress: Any = None) -> dict[str, Any]:
    """Train and validate for a few batches, save, load and predict, all in a folder that is gone afterwards.

    It runs in one process, whatever `train.devices` says. Samples are not all read, as training does before it begins.

    Args:
        tell, progress: see `segkit.experiment.train_experiment`.

    Returns:
        The plan, as `--json` writes it; see `plan_rows` for the units. None where nothing could be measured.
    """
    if started_by_launcher() is not None:
        raise ValueError("--dry-run runs in one process: leave torchrun or srun away; the plan counts all processes.")
    processes = count_processes(config.train, pick_device(config.train.device)).total
    before = peak_memory()
    ready = prepare(config, resume=False, check=False, tell=tell, progress=progress)
    # A search for the batch size has trained already, so that the peak would not rise any more.
    watch = _Stopwatch(
        _WARM_UP + _TIMED, config.train.accumulate, before if config.train.batch_size == "auto" else peak_memory()
    )
    # A frozen encoder would need less time and memory than the epochs after it. One epoch is always validated.
    brief = {**_alone(config), "epochs": 1, "freeze_encoder_epochs": 0}
    if config.train.pictures_every is not None:
        brief["pictures_every"] = 1
    with TemporaryDirectory(prefix="segkit-dry-run-") as folder:
        out = Path(folder, "run")
        settings = {**ready.settings, **brief}
        fit(
            ready.model,
            ready.parts.train,
            ready.parts.val,
            out=out,
            loss=ready.loss,
            progress=False,
            tell=_say_nothing,
            callbacks=[watch],
            **settings,
        )
        _, data = scored_last(ready.parts)
        draw_pictures(ready.model, data.subset(data.stems[:1]), out / "pictures", ready.config.train.device)
        saved = {"checkpoint_bytes": (out / CHECKPOINT).stat().st_size, "bundle_bytes": _size(out / "model")}
    return {**_counts(ready, processes, watch), **_times(ready, processes, watch), **saved}


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan as lines of a table: what, and how much of it."""
    images = ", ".join(f"{count} {name}" for name, count in plan["images"].items())
    if plan["repeat"] > 1:
        images = images.replace(" training", f" training, {plan['repeat']} times per epoch", 1)
    height, width = plan["train_size_hw"]
    processes, accumulate = plan["processes"], plan["accumulate"]
    batch = f"{plan['batch_size']} of {height} x {width} pixels"
    batch += f" in each of {processes} processes" if processes > 1 else ""
    batch += f", {accumulate} batches for one step" if accumulate > 1 else ""
    epochs = "1 epoch" if plan["epochs"] == 1 else f"{plan['epochs']} epochs"
    rows = [
        ("images", images),
        ("batch", batch),
        ("parameters", f"{plan['parameters'] / 1e6:.2f} million"),
        ("optimizer steps", f"{plan['steps_per_epoch']} per epoch, {plan['steps']} in {epochs}"),
        ("time per step", _duration(plan["step_s"])),
    ]
    if plan["validation_image_s"] is not None:
        rows.append(("time per validation image", _duration(plan["validation_image_s"])))
    return [
        *rows,
        ("time per epoch", f"about {_duration(plan['epoch_s'])}"),
        ("time in all", f"about {_duration(plan['total_s'])}"),
        ("memory", _memory(plan)),
        ("checkpoint", _mib(plan["checkpoint_bytes"])),
        ("bundle of the best epoch", _mib(plan["bundle_bytes"])),
    ]


class _Stopwatch(Callback):
    """Ends the epoch and its validation after a few batches, and keeps the seconds of each.

    Args:
        batches: to train, rounded up to whole steps of `accumulate`.
        peak_bytes: that of the process before, see `peak_memory`.
    """

    def __init__(self, batches: int, accumulate: int, peak_bytes: int | None) -> None:
        self.batches = -(-batches // accumulate) * accumulate  # whole steps
        self.train_s: list[float] = []
        self.image_s: list[float] = []
        self.memory_bytes: int | None = None
        self.size_hw: list[int] = []
        self._since_s, self._peak_bytes = 0.0, peak_bytes

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        trainer.limit_train_batches, trainer.limit_val_batches = self.batches, _VALIDATED
        place = trainer.strategy.root_device
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._lap(module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.train_s.append(self._lap(module))
        self.size_hw = list(batch.images.shape[2:])

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._lap(module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.image_s.append(self._lap(module) / max(1, sum(len(part) for part in batch)))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            self.memory_bytes = torch.cuda.max_memory_allocated(module.device)
        elif self._peak_bytes is not None:
            self.memory_bytes = (peak_memory() or 0) - self._peak_bytes

    def _lap(self, module: L.LightningModule) -> float:
        """Seconds since the last call, waiting for what the device still computes."""
        if module.device.type != "cpu":
            torch.get_device_module(module.device).synchronize()
        now = time.perf_counter()
        lap, self._since_s = now - self._since_s, now
        return lap


def _alone(config: Experiment) -> dict[str, Any]:
    """Settings of the same training in one process, told to nobody."""
    loggers = {name: options for name, options in config.train.loggers.items() if name not in _REMOTE}
    return {"devices": 1, "nodes": 1, "strategy": "auto", "sync_batchnorm": None, "loggers": loggers}


def _counts(ready: Prepared, processes: int, watch: _Stopwatch) -> dict[str, Any]:
    train, chosen = ready.parts.train, ready.config.train
    there = ready.parts
    parts = {"training": train, "validation": there.val, "test": there.test, "held out": there.held_out}
    return {
        "images": {name: len(data) for name, data in parts.items() if data is not None},
        "repeat": chosen.repeat,
        "train_size_hw": watch.size_hw,
        "batch_size": chosen.batch_size,
        "accumulate": chosen.accumulate,
        "processes": processes,
        "parameters": sum(p.numel() for p in ready.model.parameters()),
    }


def _times(ready: Prepared, processes: int, watch: _Stopwatch) -> dict[str, Any]:
    chosen, val = ready.config.train, ready.parts.val
    batches = _batches(len(ready.parts.train), chosen, processes)
    batch_s = _typical(watch.train_s, _WARM_UP)
    image_s = _typical(watch.image_s, 1) if val is not None else None
    validation_s = 0.0 if val is None or image_s is None else image_s * -(-len(val) // processes)
    steps = -(-batches // chosen.accumulate)
    validations = -(-chosen.epochs // chosen.validate_every)  # the last epoch always is
    return {
        "steps_per_epoch": steps,
        "epochs": chosen.epochs,
        "steps": steps * chosen.epochs,
        "step_s": batch_s * chosen.accumulate,
        "validation_image_s": image_s,
        "epoch_s": batches * batch_s + validation_s,
        "total_s": chosen.epochs * batches * batch_s + validations * validation_s,
        "device": pick_device(chosen.device).type,
        "memory_bytes": watch.memory_bytes,
    }


def _batches(images: int, settings: TrainSettings, processes: int) -> int:
    """Batches of one process in an epoch; see `segkit.data.loaders.train_loader`."""
    size = settings.known_batch_size
    own = len(SeededSampler(images, world_size=processes, enough=size, repeat=settings.repeat))
    return max(1, own // size)


def _typical(seconds: list[float], warm_up: int) -> float:
    return median(seconds[warm_up:] or seconds[-1:])


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _memory(plan: dict[str, Any]) -> str:
    if plan["memory_bytes"] is None:
        return "not known on this system"
    size = _mib(plan["memory_bytes"])
    return f"{size} on the GPU at most" if plan["device"] == "cuda" else f"the peak of the process rose by {size}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _say_nothing(line: str) -> None:
    pass
