"""What happens beside the steps of a run, in the order that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping

from segkit.data.datasets import MaskDataset
from segkit.formats.codec import Codec
from segkit.models.segmenter import Segmenter
from segkit.training.averaging import AveragedWeights
from segkit.training.callbacks import BestBundle, EpochBar, MetricsFile, lower_is_better
from segkit.training.checkpoint import DurableFiles, RunCheckpoint
from segkit.training.compiling import CompiledTraining, compile_mode
from segkit.training.freezing import FrozenEncoder
from segkit.training.lines import EpochLines
from segkit.training.loggers import LoggedChoices
from segkit.training.nonfinite import FiniteLoss
from segkit.training.pictures import CurvesPicture, ValidationPictures
from segkit.training.settings import TrainSettings

# In a run folder.
CHECKPOINT = Path("checkpoints", "last.ckpt")


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of one run.

    Attributes:
        in_order: for `lightning.Trainer`.
        best: knows the best epoch.
        files: the plugin that writes checkpoints.
    """

    in_order: list[Callback]
    best: BestBundle
    files: DurableFiles


def run_callbacks(
    model: Segmenter,
    settings: TrainSettings,
    out: Path,
    codec: Codec,
    val: MaskDataset | None,
    *,
    given: Sequence[Callback] = (),
    show: bool = False,
    tell: Callable[[str], None] = print,
    choices: Mapping[str, Any] | None = None,
    resumes: bool = False,
) -> RunCallbacks:
    """All that a run does beside its steps.

    Args:
        model: the one that is trained.
        out: run folder.
        codec: of the training masks.
        val: validation images.
        given: callbacks of the caller, which come first.
        show: whether a bar is drawn.
        tell, choices: see `segkit.training.fit.fit`.
        resumes: whether the run goes on from a checkpoint.
    """
    averaged = None if settings.ema is None else AveragedWeights(model.network, settings.ema)
    best = BestBundle(out / "model", codec, None if val is None else settings.monitor, averaged)
    metrics = MetricsFile(out / "metrics.csv")
    files = DurableFiles()
    mode = compile_mode(settings.compile)
    told = EpochLines(best, tell, _terminal() if show and tell is print else None)
    # Before those that keep weights; after the callbacks of the caller, which may change them.
    finite = FiniteLoss(out / "nonfinite.json", out / CHECKPOINT)
    callbacks = [*given, finite, best, metrics, told, CurvesPicture(out / "curves.png", metrics, best)]
    callbacks.append(LoggedChoices(settings.model_dump() if choices is None else choices, resumes=resumes))
    if settings.pictures_every is not None and val is not None:
        folder = out / "pictures" / "epochs"
        callbacks.append(ValidationPictures(folder, val, settings.pictures_every, settings.validate_every))
    # Lightning runs checkpoint callbacks last, so the states of the others are in it.
    callbacks.append(RunCheckpoint(out / CHECKPOINT, files, settings.checkpoint_every_steps, tell))
    if settings.patience is not None and val is not None:
        direction = "min" if lower_is_better(settings.monitor) else "max"
        callbacks.append(EarlyStopping(settings.monitor, patience=settings.patience, mode=direction))
    if mode is not None:
        callbacks.append(CompiledTraining(model.network, mode))
    if settings.freeze_encoder_epochs:
        callbacks.append(FrozenEncoder(model, settings.freeze_encoder_epochs))
    if averaged is not None:
        callbacks.append(averaged)  # after all that look at what was validated
    if show:
        callbacks.append(EpochBar())
    return RunCallbacks(callbacks, best, files)


def _terminal() -> Any:
    """The console that the bar is drawn on, so that both keep out of each other's way; None if it is no terminal."""
    from rich import get_console

    return get_console() if get_console().is_terminal else None
