"""Cross-validation: one training without each fold, and scores of every sample by the model that has not seen it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segkit.config import Experiment, read_config
from segkit.data.datasets import MaskDataset
from segkit.data.splits import fold_stems
from segkit.experiment import resume_experiment, train_experiment, write_json
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.metrics.scores import Scores
from segkit.parts import open_masks, open_part, silent_progress
from segkit.processes import is_main_process

_FOLDS = "folds.json"


def begin_folds(config: Experiment, out: Path, folds: int = 5, group: str | None = None, seed: int = 0) -> None:
    """Deal the training part, with its share `val` where that is one, into folds, and write down which they are.

    Args:
        out: gets config.yaml and folds.json: the fold of each sample.
        folds: 2 or more.
        group: regular expression whose first group stays in one fold; default that of `data.val`, else slices of a
            volume stay together.
        seed: another seed gives other folds.

    Raises:
        ValueError: `out` holds something already, fewer groups than folds, or a config that is one fold already.
    """
    if is_main_process() and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty. Go on with --resume {out}, choose another folder, or delete it.")
    if config.data.fold is not None:
        raise ValueError("the config has `data.fold`, so it is one fold already: leave it out.")
    if group is None and config.data.val is not None:
        group = config.data.val.group
    if folds < 2:
        fold_stems([], folds)  # says what is wrong
    dealt = {"folds": folds, "seed": seed, "group": group}
    found = _stems(config, dealt)
    if is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "config.yaml", config.to_yaml().encode())
        write_json(out / _FOLDS, {**dealt, "stems": found})


def train_folds(
    run: Path, *, predictions: bool = False, tell: Callable[[str], None] = print, progress: Any = None
) -> Scores:
    """Train what is not trained yet, and write `run`/scores.json.

    Each fold is a run of its own in `run`/fold_1 and so on: of the config with the fold left out. The samples of the
    fold choose nothing, neither the best epoch nor any number of the data, so their scores are honest.

    Args:
        run: a folder that `begin_folds` wrote.
        predictions: also write the mask of every sample by the model that has not seen it, into `run`/predictions.
        tell, progress: see `train_experiment`.

    Returns:
        Scores over all samples: their counts are summed, as if one model had predicted them.

    Raises:
        ValueError: no such folder, or samples that came or went since.
    """
    if not (run / _FOLDS).is_file():
        raise ValueError(f"{run}: no {_FOLDS} here; expected a folder that `segkit crossvalidate` wrote.")
    config = read_config(run / "config.yaml")
    dealt = json.loads((run / _FOLDS).read_text(encoding="utf-8"))
    if _stems(config, dealt) != dealt["stems"]:
        raise ValueError(f"{run / _FOLDS}: the samples of the training part are others now. Start in a new folder.")
    counted = progress if progress is not None and is_main_process() else silent_progress
    codec = open_masks(config)
    names = ["held_out"] + (["test"] if config.data.test is not None else [])
    scores: dict[str, list[Scores]] = {name: [] for name in names}
    for number in range(1, dealt["folds"] + 1):
        experiment, folder = _fold(config, dealt, number), run / f"fold_{number}"
        if is_main_process():
            tell(f"fold {number} of {dealt['folds']}: {folder}")
        done = {"held_out": _train(experiment, folder, tell, progress)}
        for name in names:
            found = done.get(name)
            scores[name].append(_score(experiment, folder, codec, name, counted) if found is None else found)
        if predictions and is_main_process():
            with counted(f"predicting fold {number}") as update:
                _predict(folder, _open(experiment, folder, codec, "held_out"), run / "predictions", experiment, update)
    joined = Scores.join(scores["held_out"])
    if is_main_process():
        if predictions:
            codec.finish(run / "predictions")
        write_json(run / "scores.json", _report(joined, scores))
    return joined


def _fold(config: Experiment, dealt: dict[str, Any], number: int) -> Experiment:
    values = config.model_dump(by_alias=True)
    values["data"]["fold"] = {
        "number": number,
        "of": dealt["folds"],
        "group": dealt["group"],
        "seed": dealt["seed"],
    }
    return Experiment.model_validate(values)


def _stems(config: Experiment, dealt: dict[str, Any]) -> dict[str, list[str]]:
    """Number of each fold -> its stems."""
    codec, folds = open_masks(config), range(1, dealt["folds"] + 1)
    return {str(n): open_part(_fold(config, dealt, n), "held_out", codec).stems for n in folds}


def _train(experiment: Experiment, folder: Path, tell: Callable[[str], None], progress: Any) -> Scores | None:
    """None if the fold is finished already."""
    if (folder / "config.yaml").is_file():
        return resume_experiment(folder, tell=tell, progress=progress)
    return train_experiment(experiment, folder, tell=tell, progress=progress)


def _open(experiment: Experiment, folder: Path, codec: Codec, name: str) -> MaskDataset:
    from segkit.models.bundle import load_model

    return open_part(experiment, name, codec, load_model(folder).reading)


def _score(experiment: Experiment, folder: Path, codec: Codec, name: str, progress: Any) -> Scores:
    from segkit.inference.evaluate import evaluate
    from segkit.models.bundle import load_model

    model, plan = load_model(folder), experiment.train
    data = open_part(experiment, name, codec, model.reading)
    with progress(f"scoring {name} by {folder.name}") as update:
        return evaluate(model, data, device=plan.device, workers=plan.workers, progress=update)


def _predict(folder: Path, data: MaskDataset, out: Path, experiment: Experiment, update: Any) -> None:
    from segkit.inference.predictor import Predictor

    predictor = Predictor(folder, data.codec, device=experiment.train.device)
    for index in range(len(data)):
        planes = predictor.predict_sample(data.read(index))
        data.codec.write(out, data.prediction_stem(index), planes, like=data.image_path(index))
        update(index + 1, len(data))


def _report(joined: Scores, scores: dict[str, list[Scores]]) -> dict[str, Any]:
    """As scores.json of a run, with `folds` (scores of each fold by part) and `spread` (over the folds)."""
    return {
        **joined.to_dict(),
        "split": "out-of-fold",
        "folds": [
            {name: each.to_dict() for name, each in zip(scores, row, strict=True)}
            for row in zip(*scores.values(), strict=True)
        ],
        "spread": {name: _spread(each) for name, each in scores.items()},
    }


def _spread(scores: Sequence[Scores]) -> dict[str, dict[str, float | None]]:
    """Mean and sample deviation of every mean score over the folds that have it."""
    found: dict[str, dict[str, float | None]] = {}
    means = [each.means() for each in scores]
    for name in means[0]:
        values = [value for each in means if (value := each[name]) is not None]
        found[name] = {
            "mean": statistics.mean(values) if values else None,
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
        }
    return found
