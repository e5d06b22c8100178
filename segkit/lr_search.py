"""`segkit train --find-lr`: the learning-rate range test of an experiment, as a line, a picture and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segkit.config import Experiment
from segkit.experiment import prepare, write_json
from segkit.inference.overlay import write_picture
from segkit.training.lr_finder import RangeTest, find_lr


def search_lr(
    config: Experiment,
    picture: Path,
    json: Path | None = None,
    *,
    tell: Callable[[str], None] = print,
    progress: Any = None,
) -> RangeTest:
    """Find a rate for the training of `config`, draw the test to `picture`, and write its numbers to `json`.

    Args:
        progress: see `segkit.experiment.train_experiment`.
    """
    ready = prepare(config, resume=False, check=False, tell=tell, progress=progress)
    settings = {name: value for name, value in ready.settings.items() if name != "choices"}
    found = find_lr(ready.model, ready.parts.train, loss=ready.loss, **settings)
    write_picture(picture, found.draw())
    if json is not None:
        write_json(json, found.to_dict())
    if found.suggestion is None:
        tell("no rate lowered the loss: look at the picture, and at the loss and the data")
    else:
        tell(f"the loss falls fastest at train.lr={found.suggestion:.2g} (train.lr is {config.train.lr:g})")
    tell(f"loss over rate: {picture}")
    return found


def lr_picture(config: Path, out: Path | None) -> Path:
    """Where the picture goes: into the folder `out`, else beside the runs of that config."""
    return Path("runs", f"{config.stem}-lr.png") if out is None else out / "lr.png"
