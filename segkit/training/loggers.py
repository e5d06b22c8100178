"""Where the numbers of a run go beside its folder: TensorBoard, Weights & Biases and MLflow, by name.

Each is the logger of `lightning.pytorch.loggers` of that name. The ids of runs that services keep stand in
`loggers.json` of the run folder, so that a resumed run goes on in them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from segkit.formats.files import write_whole
from segkit.processes import is_main_process
from segkit.training.settings import LOGGERS

log = logging.getLogger("segkit")

# Events that wait longer than this are lost where a run is killed.
_FLUSH_S = 10
_IDS = "loggers.json"
_PROJECT = "segkit"


def check_loggers(wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse loggers whose package is missing, before anything is read or written."""
    for name in wanted:
        if find_spec(LOGGERS[name]) is None:
            raise ValueError(
                f"train.loggers names {name}, whose package {LOGGERS[name]!r} is not installed. Install it with "
                f"`pip install 'segkit[{name}]'`, or leave {name} out of train.loggers."
            )


@contextmanager
def open_loggers(
    wanted: Mapping[str, Mapping[str, Any]], out: Path, checkpoint: str | Path | None = None
) -> Iterator[list[Logger]]:
    """The loggers of a run; what they began is ended with the block.

    Args:
        wanted: options by name, see `TrainSettings.loggers`.
        out: run folder.
        checkpoint: the run goes on from it.

    Raises:
        ValueError: a logger that does not start with its options, as where nobody is logged in.
    """
    resumes = checkpoint is not None
    ids = _read_ids(out) if resumes else {}
    step = _step_of(checkpoint) if checkpoint is not None and "tensorboard" in wanted else None
    had_wandb_run = "wandb" in wanted and _wandb_run() is not None
    loggers: list[Logger] = []
    try:
        for name, options in wanted.items():
            try:
                logger: Any = _OPEN[name](out, dict(options), ids.get(name), step)
                if is_main_process():
                    _ = logger.experiment  # it begins now, and says what is wrong with its options
            except Exception as error:  # of any kind that these packages have
                raise ValueError(
                    f"train.loggers: {name} did not start ({type(error).__name__}: {error}). "
                    f"Its options are {dict(options)}; leave it out of train.loggers to train without it."
                ) from error
            loggers.append(logger)
        if is_main_process():
            _write_ids(out, loggers)
        yield loggers
    finally:
        # A run that is left open would take what the next one in this process logs.
        if "wandb" in wanted and not had_wandb_run and _wandb_run() is not None:
            import wandb

            wandb.finish()


class OptionalTensorBoard(TensorBoardLogger):
    """Training goes on where events cannot be written, as on a full disk: told once, and no more are written.

    Lightning would end the run, and say that it tried to log a number that is not supported.
    """

    _broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_broken(super().log_metrics, metrics, step)

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """An (H, W, 3) uint8 RGB picture."""
        self._unless_broken(lambda: self.experiment.add_image(name, picture, step, dataformats="HWC"))

    def flush(self) -> None:
        """Bring to the disk what waits."""
        self._unless_broken(lambda: self.experiment.flush())

    def save(self) -> None:
        self._unless_broken(super().save)

    def finalize(self, status: str) -> None:
        self._unless_broken(super().finalize, status)

    def _unless_broken(self, write: Callable[..., None], *given: Any) -> None:
        if self._broken:
            return
        try:
            write(*given)
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__  # Lightning's ValueError
            if not isinstance(reason, OSError):
                raise
            self._broken = True
            why = reason.strerror or reason
            log.warning("%s: TensorBoard gets no more of this run (%s). Training goes on.", self.log_dir, why)


class LoggedChoices(Callback):
    """Tells all loggers what was chosen for a run, once, and lets nothing wait that a checkpoint has seen.

    Args:
        choices: of settings or of a whole config; may be nested.
        resumes: the run was told before.
    """

    def __init__(self, choices: Mapping[str, Any], resumes: bool) -> None:
        self.choices, self.resumes = dict(choices), resumes

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for logger in [] if self.resumes else trainer.loggers:
            logger.log_hyperparams(self.choices)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, OptionalTensorBoard):
                logger.flush()


def log_picture(loggers: Sequence[Logger], name: str, picture: np.ndarray, step: int) -> None:
    """Hand an (H, W, 3) uint8 RGB picture to all loggers that take pictures."""
    for logger in loggers:
        if isinstance(logger, OptionalTensorBoard):
            logger.add_picture(name, picture, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}/step_{step:08d}.png")


def _open_tensorboard(out: Path, options: dict[str, Any], run: str | None, step: int | None) -> Logger:
    # Steps after the checkpoint come again: those that were written before are hidden.
    defaults = {"default_hp_metric": False, "flush_secs": _FLUSH_S, "purge_step": step}
    return OptionalTensorBoard(out, **{"name": "tensorboard", "version": "", **defaults, **options})


def _open_wandb(out: Path, options: dict[str, Any], run: str | None, step: int | None) -> Logger:
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    return WandbLogger(**{"project": project, "name": _name(out), "save_dir": str(out), "id": run, **options})


def _open_mlflow(out: Path, options: dict[str, Any], run: str | None, step: int | None) -> Logger:
    import mlflow

    defaults = {
        "experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
        "run_name": _name(out),
        # Where MLflow itself would look; Lightning takes a folder of files, which MLflow 3 refuses.
        "tracking_uri": None if "save_dir" in options else mlflow.get_tracking_uri(),
    }
    logger = MLFlowLogger(**{**defaults, "run_id": run, **options})
    if run is not None and is_main_process():
        logger.experiment.update_run(run, status="RUNNING")
    return logger


_OPEN: dict[str, Callable[[Path, dict[str, Any], str | None, int | None], Logger]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}


def _name(out: Path) -> str:
    """`runs/nuclei`: the folder alone may be `fold_1`."""
    return "/".join(out.absolute().parts[-2:])


def _wandb_run() -> Any:
    import wandb

    return wandb.run


def _step_of(checkpoint: str | Path) -> int:
    # Mapped: only the pages of this number are read.
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]


def _read_ids(out: Path) -> dict[str, str]:
    path = out / _IDS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_ids(out: Path, loggers: Sequence[Logger]) -> None:
    named = {"wandb": WandbLogger, "mlflow": MLFlowLogger}
    ids = {name: str(lg.version) for name, kind in named.items() for lg in loggers if isinstance(lg, kind)}
    if ids:
        write_whole(out / _IDS, (json.dumps(ids, indent=2) + "\n").encode())
