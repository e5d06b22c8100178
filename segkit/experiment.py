"""From a config to a trained model, and the run folder of one experiment."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.config import Experiment, read_config
from segkit.data.datasets import MaskDataset
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.metrics.scores import Scores
from segkit.models.devices import pick_device
from segkit.models.segmenter import Segmenter
from segkit.models.steps import open_steps
from segkit.parts import (
    Parts,
    open_masks,
    open_part,
    open_parts,
    scored_part,
    silent_progress,
    verify,
    working_size,
)
from segkit.processes import is_main_process

if TYPE_CHECKING:
    from segkit.inference.models import SegmentationModel

log = logging.getLogger("segkit")

_PICTURES = 8


def build(config: Experiment, codec: Codec, parts: Parts) -> Segmenter:
    """The model of a config; without `model.in_channels`, bands are those of the first training image."""
    import torch

    from segkit.models.builder import build_model

    torch.manual_seed(config.train.seed)  # of the weights that start at random
    given = config.model
    bands = given.in_channels or parts.train.read(0).image.shape[2]
    model = build_model(
        given.architecture,
        given.encoder,
        codec.format,
        weights=given.weights,
        in_channels=bands,
        clip=given.clip,
        window=given.window,
        resize=working_size(config),
        **given.options,
    )
    model.postprocess = open_steps(config.postprocess, codec.format)
    return model


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    Attributes:
        config: with numbers in place of what is found from the data.
        model: fitted to the pixels of the training part, unless a run is resumed.
    """

    config: Experiment
    codec: Codec
    parts: Parts
    loss: Any
    model: Segmenter

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `fit`."""
        settings = {**self.config.train.model_dump(), "data_on_device": self.config.data.cache == "device"}
        settings["choices"] = self.config.model_dump(by_alias=True)
        return settings


def prepare(
    config: Experiment, *, resume: bool, check: bool, tell: Callable[[str], None] = print, progress: Any = None
) -> Prepared:
    """Data, loss and model of a config; nothing is written.

    Args:
        resume: a checkpoint holds what is fitted to the data.
        check: read every sample once, so that a bad one is named now.
        progress: see `train_experiment`.
    """
    from segkit.data.device_data import device_augment
    from segkit.losses.build import build_loss
    from segkit.training.auxiliary import check_supervision
    from segkit.training.class_balance import focus_on_rare, waits_for_counts, without_balance
    from segkit.training.compiling import check_one_size
    from segkit.training.distributed import check_strategy, count_processes
    from segkit.training.fit import fit_pixel_statistics
    from segkit.training.loggers import check_loggers
    from segkit.training.mixing import Mixer
    from segkit.training.named_optimizers import check_optimizer

    check_strategy(config.train, count_processes(config.train, pick_device(config.train.device)))
    check_loggers(config.train.loggers)
    counted = progress if progress is not None else silent_progress
    codec = open_masks(config)
    build_loss(without_balance(config.loss, codec.format), codec.format)  # what is wrong with it is told at once
    check_optimizer(config.train.optimizer)
    open_steps(config.postprocess, codec.format)
    Mixer(config.train.mix, codec.format, config.train.seed)
    if not is_main_process():
        tell, counted = (lambda line: None), silent_progress
    parts = open_parts(config, codec, counted)
    # Known now; `verify` reads every file before `fit` would say it.
    if config.train.compile:
        check_one_size(parts.train)
    if config.data.cache == "device":
        device_augment(parts.train)
    _tell_parts(parts, tell)
    if check and is_main_process():
        verify(parts, config, counted)
    config = balanced(config, parts.train, tell, counted)
    if waits_for_counts(parts.train):
        with counted("counting rare classes") as update:
            parts = replace(parts, train=focus_on_rare(parts.train, update))
    loss = build_loss(config.loss, codec.format)
    model = build(config, codec, parts)
    if config.train.deep_supervision is not None:
        check_supervision(model)
    if not resume:
        fit_pixel_statistics(model, parts.train)
    config = sized(config, model, parts, loss, tell)
    return Prepared(config, codec, parts, loss, model)


def train_experiment(
    config: Experiment, out: Path, *, resume: bool = False, tell: Callable[[str], None] = print, progress: Any = None
) -> Scores:
    """Train, keep the best epoch, score it on the held-out fold (else test, else val), and fill the run folder.

    Args:
        progress: called with a word on what is counted; gives a context manager whose value is called with
            (done, in all). None shows nothing.
    """
    from segkit.training.fit import refuse_used_folder
    from segkit.training.run_lock import only_process_in

    if not resume:
        refuse_used_folder(out)
    if not is_main_process():
        tell, progress = (lambda line: None), None
    ready = prepare(config, resume=resume, check=not resume, tell=tell, progress=progress)
    with only_process_in(out):
        if not resume:
            refuse_used_folder(out)  # preparing took a while
        return _train(ready, out, resume, tell, progress if progress is not None else silent_progress)


def _train(ready: Prepared, out: Path, resume: bool, tell: Callable[[str], None], counted: Any) -> Scores:
    from segkit.inference.evaluate import evaluate
    from segkit.training.fit import fit
    from segkit.training.launching import others_may_end

    config, model, parts = ready.config, ready.model, ready.parts
    if is_main_process():
        write_whole(out / "config.yaml", config.to_yaml().encode())
    result = fit(model, parts.train, parts.val, out=out, loss=ready.loss, resume=resume, tell=tell, **ready.settings)
    if result.best is not None and result.best_epoch is not None:
        tell(f"best {config.train.monitor} {result.best:.4f} in epoch {result.best_epoch + 1}")
    split, data = scored_last(parts)
    with counted(f"scoring {split}") as update, others_may_end():
        scores = evaluate(model, data, device=config.train.device, workers=config.train.workers, progress=update)
    if is_main_process():
        draw_pictures(model, data, out / "pictures", config.train.device)
        # Last: its presence says that the run is finished.
        write_json(out / "scores.json", {**scores.to_dict(), "split": split})
    return scores


def scored_last(parts: Parts) -> tuple[str, MaskDataset]:
    """The part that a trained model is scored on: a held-out fold, else test, else val, else train."""
    there = parts.named()
    return next((name, there[name]) for name in ("held_out", "test", "val", "train") if name in there)


def balanced(config: Experiment, train: MaskDataset, tell: Callable[[str], None], progress: Any) -> Experiment:
    """The config with numbers in place of `class_weights: balanced`, which a resumed run reads from its folder."""
    from segkit.training.class_balance import count_class_weights, losses_to_balance

    names = losses_to_balance(config.loss, train.format)
    if not names:
        return config
    with progress("counting classes") as update:
        loss = count_class_weights(config.loss, train, update)
    assert isinstance(loss, dict)
    weights = loss[names[0]]["class_weights"]
    tell(f"class weights: {', '.join(f'{name} {weight:g}' for name, weight in weights.items())}")
    return config.model_copy(update={"loss": loss})


def sized(config: Experiment, model: Segmenter, parts: Parts, loss: Any, tell: Callable[[str], None]) -> Experiment:
    """The config with a number in place of `batch_size: auto`, which a resumed run reads from its folder."""
    from segkit.training.batch_size import fit_batch_size

    if config.train.batch_size != "auto":
        return config
    size = fit_batch_size(
        model,
        parts.train,
        parts.val,
        loss=loss,
        settings=config.train,
        data_on_device=config.data.cache == "device",
    )
    tell(f"batch size: {size}")
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})


def resume_experiment(run: Path, *, tell: Callable[[str], None] = print, progress: Any = None) -> Scores | None:
    """Go on with the run in `run`; None if it is finished already.

    Raises:
        ValueError: no run folder, or one that another process works in.
    """
    from segkit.training.run_lock import only_process_in

    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: no config.yaml here; expected a run folder that `segkit train` wrote.")
    if (run / "scores.json").is_file():
        return None
    with only_process_in(run):
        config = read_config(run / "config.yaml")
        begun = (run / "checkpoints" / "last.ckpt").is_file()
        if not begun and is_main_process():  # stopped before the first checkpoint was whole: starts anew
            for folder in (run / "checkpoints", run / "model", *run.glob(".model-*")):
                shutil.rmtree(folder, ignore_errors=True)
        return train_experiment(config, run, resume=begun, tell=tell, progress=progress)


def open_evaluation(
    model: Path,
    config: Path | None,
    overrides: Iterable[str],
    split: str | None,
    images: Path | None,
    masks: Path | None,
) -> tuple[SegmentationModel, MaskDataset, str | None]:
    """Model, data and name of the part for `segkit evaluate MODEL`.

    The data are `images` and `masks`, or a part of `config`; without either, of the config in the run folder.
    """
    from segkit.inference.models import open_model

    network, stored_codec = open_model(model)
    if (images is None) != (masks is None):
        raise ValueError("--images and --masks go together: give both folders.")
    if config is None and images is None:
        config = model / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{model} is no run folder: say what to score with --config, or --images and --masks.")
    experiment = read_config(config, overrides) if config is not None else None
    codec = open_masks(experiment, network.reading.axis) if experiment is not None else stored_codec
    if codec is None:
        raise ValueError(f"{model}: saved without a codec; give --config, whose masks section says how to read masks.")
    if images is not None and masks is not None:
        return network, MaskDataset(images, masks, codec, reading=network.reading.for_new_images()), split
    assert experiment is not None
    part = scored_part(experiment, split)
    return network, open_part(experiment, part, codec, network.reading), part


def draw_pictures(model: Segmenter, data: MaskDataset, folder: Path, device: str) -> None:
    """Image, truth and prediction side by side for samples spread over `data`."""
    from segkit.inference.overlay import draw_overlay, side_by_side, to_rgb, write_picture
    from segkit.inference.predictor import Predictor

    predictor = Predictor(model, data.codec, device=device)
    for index in np.unique(np.linspace(0, len(data) - 1, _PICTURES).astype(int)):
        sample = data.read(int(index))
        image = data.reading.without_neighbours(sample.image)
        truth, pred = (
            draw_overlay(image, planes, data.format) for planes in (sample.planes, predictor.predict_sample(sample))
        )
        write_picture(folder / f"{sample.stem}.png", side_by_side(to_rgb(image), truth, pred))


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, without NaN: a number that is not known is null."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no text: JSON has an escape for them.
    write_whole(path, (text + "\n").encode(errors="backslashreplace"))


def _tell_parts(parts: Parts, tell: Callable[[str], None]) -> None:
    words = {"train": "training", "val": "validation", "held_out": "held out"}
    counts = [f"{len(data)} {words.get(name, name)}" for name, data in parts.named().items()]
    tell(f"images: {', '.join(counts)}")
    if parts.val is None:
        tell("no data.val: nothing says which epoch is best, so the last one is kept")
