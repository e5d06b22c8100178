"""Cross-validation: one training without each fold, and scores of every sample by the model that has not seen it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from segkit.config import Experiment, read_config
from segkit.data.splits import check_folds
from segkit.experiment import resume_experiment, train_experiment, write_json
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.formats.json_files import read_json
from segkit.metrics.scores import Scores
from segkit.parts import held_out_stems, open_masks, open_part, silent_progress
from segkit.processes import is_main_process

_FOLDS = "folds.json"


@dataclass(frozen=True)
class Folds:
    """A cross-validation, and how far it has come.

    Attributes:
        config: of all folds, without `data.fold`.
        folder: gets a run folder `fold_1` and so on for each fold.
        stems: of each fold.
        group, seed: see `begin_folds`.
        state: of each fold: `new`, `begun` or `finished`. Looked at once: several processes have to see the same.
    """

    config: Experiment
    folder: Path
    stems: Sequence[Sequence[str]]
    group: str | None
    seed: int
    state: Sequence[str]

    def run(self, number: int) -> Path:
        """Run folder of a fold, from 1."""
        return self.folder / f"fold_{number}"


def begin_folds(config: Experiment, out: Path, folds: int = 5, group: str | None = None, seed: int = 0) -> Folds:
    """Deal the training part, with its share `val` where that is one, into folds, and write down which they are.

    Args:
        out: gets config.yaml and folds.json.
        folds: 2 or more.
        group: regular expression whose first group stays in one fold; default that of `data.val`, else slices of a
            volume stay together.
        seed: another seed gives other folds.

    Raises:
        ValueError: `out` holds something already, fewer groups than folds, a seed below 0, or a config that is one fold
            already.
    """
    if is_main_process() and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty. Go on with --resume {out}, choose another folder, or delete it.")
    if config.data.fold is not None:
        raise ValueError("the config has `data.fold`, so it is one fold already: leave it out.")
    if group is None and config.data.val is not None:
        group = config.data.val.group
    check_folds(folds)
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more.")
    begun = Folds(config, out, _deal(config, folds, group, seed), group, seed, ["new"] * folds)
    if is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "config.yaml", config.to_yaml().encode())
        write_json(out / _FOLDS, {"group": group, "seed": seed, "stems": begun.stems})
    return begun


def read_folds(folder: Path) -> Folds:
    """A cross-validation that `begin_folds` wrote down.

    Raises:
        ValueError: no such folder, or samples that came or went since.
    """
    if not (folder / _FOLDS).is_file():
        raise ValueError(f"{folder}: no {_FOLDS} here; expected a folder that `segkit crossvalidate` wrote.")
    config = read_config(folder / "config.yaml")
    dealt = read_json(folder / _FOLDS)
    if lost := {"stems", "group", "seed"} - dealt.keys():
        raise ValueError(f"{folder / _FOLDS}: the keys {', '.join(sorted(lost))} are missing. Start in a new folder.")
    stems, group, seed = dealt["stems"], dealt["group"], dealt["seed"]
    if _deal(config, len(stems), group, seed) != stems:
        raise ValueError(f"{folder / _FOLDS}: the samples of data.train are others now. Start in a new folder.")
    runs = [folder / f"fold_{number}" for number in range(1, len(stems) + 1)]
    state = [
        "finished" if (run / "scores.json").is_file() else "begun" if (run / "config.yaml").is_file() else "new"
        for run in runs
    ]
    return Folds(config, folder, stems, group, seed, state)


def train_folds(
    folds: Folds, *, predictions: bool = False, tell: Callable[[str], None] = print, progress: Any = None
) -> Scores:
    """Train what is not trained yet, and write scores.json.

    Each fold is a run of its own, of the config with the fold left out. The samples of the fold choose nothing, neither
    the best epoch nor any number that is taken from the data, so their scores are honest.

    Args:
        predictions: also write the mask of every sample by the model that has not seen it, into `predictions`.
        tell, progress: see `train_experiment`.

    Returns:
        Scores over all samples: their counts are summed, as if one model had predicted them.
    """
    if not is_main_process():
        tell, progress = (lambda line: None), None
    counted = progress if progress is not None else silent_progress
    codec, total = open_masks(folds.config), len(folds.stems)
    names = ["held_out"] + (["test"] if folds.config.data.test is not None else [])
    scores: dict[str, list[Scores]] = {name: [] for name in names}
    for number, state in enumerate(folds.state, start=1):
        config, run = _with_fold(folds.config, number, total, folds.group, folds.seed), folds.run(number)
        tell(f"fold {number} of {total}: {run}" + (", finished already" if state == "finished" else ""))
        if number > 1 and state == "new":
            config = _sized_as(config, folds.run(1))
        done = {"held_out": _train(config, run, state, tell, progress)}
        for name in names:
            found = done.get(name)
            scores[name].append(_score(config, run, codec, name, counted) if found is None else found)
        if predictions and is_main_process():
            with counted(f"predicting fold {number}") as update:
                _predict(config, run, codec, folds.folder / "predictions", update)
    joined = Scores.join(scores["held_out"])
    if is_main_process():
        if predictions:
            codec.finish(folds.folder / "predictions")
        write_json(folds.folder / "scores.json", _report(joined, scores))
    return joined


def _with_fold(config: Experiment, number: int, of: int, group: str | None, seed: int) -> Experiment:
    values = config.model_dump(by_alias=True)
    values["data"]["fold"] = {"number": number, "of": of, "group": group, "seed": seed}
    return Experiment.model_validate(values)


def _deal(config: Experiment, folds: int, group: str | None, seed: int) -> list[list[str]]:
    numbered = [_with_fold(config, number, folds, group, seed) for number in range(1, folds + 1)]
    return held_out_stems(numbered, open_masks(config))


def _sized_as(config: Experiment, first: Path) -> Experiment:
    """All folds train with the batch size that was found for the first, as what memory is free differs by the hour."""
    if config.train.batch_size != "auto":
        return config
    size = read_config(first / "config.yaml").train.batch_size
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})


def _train(config: Experiment, run: Path, state: str, tell: Callable[[str], None], progress: Any) -> Scores | None:
    """None if the fold is finished already."""
    if state == "new":
        return train_experiment(config, run, tell=tell, progress=progress)
    return resume_experiment(run, tell=tell, progress=progress)


def _score(config: Experiment, run: Path, codec: Codec, name: str, progress: Any) -> Scores:
    from segkit.inference.evaluate import evaluate
    from segkit.models.bundle import load_model

    model, plan = load_model(run), config.train
    data = open_part(config, name, codec, model.reading)
    with progress(f"scoring {name} by {run.name}") as update:
        return evaluate(model, data, device=plan.device, workers=plan.workers, progress=update)


def _predict(config: Experiment, run: Path, codec: Codec, out: Path, update: Callable[[int, int], None]) -> None:
    from segkit.inference.predictor import Predictor

    predictor = Predictor(run, codec, device=config.train.device)
    reading = predictor.model.reading
    data = open_part(config, "held_out", codec, reading).across(reading.main_axis)
    whole = lru_cache(1)(predictor.predict_volume)
    for index in range(len(data)):
        image = data.image_ref(index)
        if image.index is None:
            planes = predictor.predict_sample(data.read(index))
        else:
            planes = whole(replace(image, index=0))[image.index]
        codec.write(out, data.prediction_stem(index), planes, like=data.image_path(index))
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
