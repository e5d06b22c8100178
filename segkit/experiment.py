"""From a config to the objects of the library, and the run folder of one experiment."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import Experiment, read_config
from segkit.data.cache import PLACES
from segkit.data.datasets import MaskDataset, check_training_sizes
from segkit.data.layouts import PART_KEYS, find_layout, open_layout
from segkit.data.reading import ImageReading
from segkit.data.splits import read_quarantine, split_stems
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.files import write_whole
from segkit.formats.mask_format import MaskFormat
from segkit.metrics.scores import Scores
from segkit.models.devices import pick_device
from segkit.models.segmenter import Segmenter
from segkit.ops.sizes import Resize, Spacing, is_one_size

log = logging.getLogger("segkit")

Progress = Callable[[int, int], None]
_PICTURES = 8


@dataclass(frozen=True)
class Parts:
    """The data of an experiment.

    Attributes:
        train: augmented, at the model's working size.
        val, test: as stored; None where the config names none.
    """

    train: MaskDataset
    val: MaskDataset | None
    test: MaskDataset | None


def open_masks(config: Experiment, axis: str | None = None) -> Codec:
    """The codec, and with it the format, that a config's `masks` section describes.

    Args:
        axis: volumes are cut across it, masks as images; default that of `config.data`.
    """
    masks, axis = config.masks, axis or config.data.axis
    format = MaskFormat.from_config(masks.model_dump(include={"format", "classes", "activation", "threshold"}))
    spec: dict[str, Any] = {"name": masks.codec} if isinstance(masks.codec, str) else dict(masks.codec)
    if masks.ignored_values:
        if "ignored_values" in spec:
            raise ValueError("`ignored_values` stands in `masks` and in `masks.codec`: leave one of them out.")
        spec["ignored_values"] = masks.ignored_values
    if spec.get("name") == "nifti" and spec.setdefault("axis", axis) != axis:
        raise ValueError(
            f"masks.codec.axis is {spec['axis']}, but data.axis is {axis}: images and masks are cut alike."
        )
    return open_codec(spec, format)


def image_reading(config: Experiment) -> ImageReading:
    """How the images of an experiment are read."""
    return ImageReading(
        gray=config.model.in_channels == 1,
        axis=config.data.axis,
        neighbours=config.data.neighbours,
        normalize=config.data.normalize,
    )


def working_size(config: Experiment) -> Resize:
    """The size that the model of an experiment works at."""
    spacing = config.data.spacing_mm
    if spacing is None:
        return config.data.resize
    return Spacing(*spacing) if isinstance(spacing, list) else Spacing(spacing, spacing)


def open_part(config: Experiment, name: str, codec: Codec, reading: ImageReading | None = None) -> MaskDataset:
    """One part of the data as it is stored: train, val or test.

    Args:
        reading: of the model that is scored; default that of `config`.
    """
    reading = reading or image_reading(config)
    source = _source_of(config, name)
    return _share(config, name, _open_folders(config, source, codec, reading))


def open_parts(config: Experiment, codec: Codec, progress: Any = None) -> Parts:
    """All parts; the training part with crop, resize and augmentation. Parts with a cache make it, or find it made.

    Args:
        progress: see `train_experiment`.
    """
    from segkit.data.augment import build_augment

    augment = build_augment(config.augment, codec.format, crop=config.data.crop)
    names = [name for name in ("train", "val", "test") if name == "train" or getattr(config.data, name) is not None]
    # Folders that two parts share are opened, and decoded, once. All are opened before the first is decoded.
    reading = image_reading(config)
    folders = dict.fromkeys(_source_of(config, name) for name in names)
    sources = {name: _open_folders(config, name, codec, reading) for name in folders}
    parts = {name: _share(config, name, sources[_source_of(config, name)]) for name in names}
    unknown = set.intersection(*(set(data.quarantine_unknown) for data in parts.values()))
    if unknown and is_main_process():
        log.warning("data.quarantine names samples that no part holds: %s.", ", ".join(sorted(unknown)[:5]))
    if config.data.cache in PLACES:
        sources = {name: _cached(config, name, data, progress or silent_progress) for name, data in sources.items()}
        parts = {name: _share(config, name, sources[_source_of(config, name)]) for name in names}
    train = parts["train"]
    train.augment, train.resize, train.seed = augment, working_size(config), config.train.seed
    return Parts(train, parts.get("val"), parts.get("test"))


def build(config: Experiment, codec: Codec, parts: Parts) -> Segmenter:
    """The model of a config; without `model.in_channels`, bands are those of the first training image."""
    import torch

    from segkit.models.builder import build_model

    torch.manual_seed(config.train.seed)  # of the weights that start at random
    given = config.model
    bands = given.in_channels or parts.train.read(0).image.shape[2]
    return build_model(
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


def train_experiment(
    config: Experiment, out: Path, *, resume: bool = False, tell: Callable[[str], None] = print, progress: Any = None
) -> Scores:
    """Train, keep the best epoch, score it on the test part (else val), and fill the run folder.

    Args:
        progress: called with a word on what is counted; gives a context manager whose value is called with
            (done, in all). None shows nothing.
    """
    from segkit.data.device_data import device_augment
    from segkit.inference.evaluate import evaluate
    from segkit.losses.build import build_loss
    from segkit.training.class_balance import without_balance
    from segkit.training.compiling import check_one_size
    from segkit.training.fit import fit, fit_pixel_statistics, refuse_used_folder

    if not resume:
        refuse_used_folder(out)
    pick_device(config.train.device)
    counted = progress if progress is not None else silent_progress
    codec = open_masks(config)
    build_loss(without_balance(config.loss, codec.format), codec.format)  # what is wrong with it is told at once
    if not is_main_process():
        tell, counted = (lambda line: None), silent_progress
    parts = open_parts(config, codec, counted)
    # Known now; `verify` reads every file before `fit` would say it.
    if config.train.compile:
        check_one_size(parts.train)
    if config.data.cache == "device":
        device_augment(parts.train)
    _tell_parts(parts, tell)
    if not resume and is_main_process():
        verify(parts, config, counted)
    config = balanced(config, parts.train, tell, counted)
    loss = build_loss(config.loss, codec.format)
    model = build(config, codec, parts)
    if not resume:
        fit_pixel_statistics(model, parts.train)
    out.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        write_whole(out / "config.yaml", config.to_yaml().encode())
    settings = {**config.train.model_dump(), "data_on_device": config.data.cache == "device"}
    result = fit(model, parts.train, parts.val, out=out, loss=loss, resume=resume, tell=tell, **settings)
    if result.best is not None and result.best_epoch is not None:
        tell(f"best {config.train.monitor} {result.best:.4f} in epoch {result.best_epoch + 1}")
    split, data = next((n, d) for n, d in (("test", parts.test), ("val", parts.val), ("train", parts.train)) if d)
    with counted(f"scoring {split}") as update:
        scores = evaluate(model, data, device=config.train.device, workers=config.train.workers, progress=update)
    if is_main_process():
        draw_pictures(model, data, out / "pictures", config.train.device)
        # Last: its presence says that the run is finished.
        write_json(out / "scores.json", {**scores.to_dict(), "split": split})
    return scores


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


def is_main_process() -> bool:
    """True in the process that writes and tells; launchers number the others in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def resume_experiment(run: Path, *, tell: Callable[[str], None] = print, progress: Any = None) -> Scores | None:
    """Go on with the run in `run`; None if it is finished already."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: no config.yaml here; expected a run folder that `segkit train` wrote.")
    if (run / "scores.json").is_file():
        return None
    config = read_config(run / "config.yaml")
    begun = (run / "checkpoints" / "last.ckpt").is_file()
    if not begun:  # stopped before the first checkpoint was whole: starts anew
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
) -> tuple[Segmenter, MaskDataset, str | None]:
    """Model, data and name of the part for `segkit evaluate MODEL`.

    The data are `images` and `masks`, or a part of `config`; without either, of the config in the run folder.
    """
    from segkit.models.bundle import load_codec, load_model

    network = load_model(model)
    if (images is None) != (masks is None):
        raise ValueError("--images and --masks go together: give both folders.")
    if config is None and images is None:
        config = model / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{model} is no run folder: say what to score with --config, or --images and --masks.")
    experiment = read_config(config, overrides) if config is not None else None
    codec = open_masks(experiment, network.reading.axis) if experiment is not None else load_codec(model)
    if codec is None:
        raise ValueError(f"{model}: saved without a codec; give --config, whose masks section says how to read masks.")
    if images is not None and masks is not None:
        return network, MaskDataset(images, masks, codec, reading=network.reading.for_new_images()), split
    assert experiment is not None
    part = scored_part(experiment, split)
    return network, open_part(experiment, part, codec, network.reading), part


def scored_part(config: Experiment, split: str | None) -> str:
    """The part that `--split` names; default test, or val where the config has no test."""
    part = split or ("test" if config.data.test is not None else "val")
    if part not in ("train", "val", "test"):
        raise ValueError(f"--split is {part!r}: expected train, val or test.")
    return part


def verify(parts: Parts, config: Experiment, progress: Any) -> None:
    """Read every sample once, so that a bad one is named before training starts, not an hour later."""
    resize = working_size(config)
    for name, data in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
        if data is not None:
            seen = data.without_augment()
            seen.resize = resize  # the model's, for all parts: one that needs a spacing is known now
            with progress(f"checking {name}") as update:
                sizes = seen.verify(progress=update)
            # A list of transforms may cut on its own.
            one_size = config.data.crop is not None or is_one_size(resize)
            if name == "train" and not one_size and isinstance(config.augment, str):
                check_training_sizes(sizes, config.train.batch_size)
            trained, bands = (part.read(0).image.shape[2] for part in (parts.train, data))
            if bands != trained:
                raise ValueError(
                    f"{data.images}: images of data.{name} have {bands} bands, those of data.train have {trained}. "
                    "All parts need the same bands."
                )


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
    write_whole(path, (text + "\n").encode())


class silent_progress:
    """Stands in for a progress bar where nobody looks."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __enter__(self) -> Progress:
        return lambda done, total: None

    def __exit__(self, *exc: object) -> None:
        return None


def _source_of(config: Experiment, name: str) -> str:
    """The part whose folders hold the part called `name`."""
    part = getattr(config.data, name)
    if part is None:
        there = list(find_layout(config.data.layout).parts(Path(config.data.root)))
        folders = "{}" if name in there else "{images: DIR, masks: DIR}"
        raise ValueError(f"the config has no `data.{name}`. Add it, such as `{name}: {folders}`.")
    return part.from_ or name


def _share(config: Experiment, name: str, data: MaskDataset) -> MaskDataset:
    """What the part called `name` takes of `data`, or what is left for it."""
    source, stems = _source_of(config, name), data.stems
    for taker in ("val", "test"):
        taking = getattr(config.data, taker)
        if taking is not None and taking.from_ == source:
            stems, taken = split_stems(stems, taking.fraction, taking.seed, taking.group)
            if taker == name:
                return data.subset(taken)
    return data.subset(stems)


def _cached(config: Experiment, name: str, data: MaskDataset, progress: Any) -> MaskDataset:
    with progress(f"decoding {name}") as update:
        settings = config.data
        return data.cached(settings.cache, folder=settings.cache_dir, max_gib=settings.cache_gib, progress=update)


def _open_folders(config: Experiment, name: str, codec: Codec, reading: ImageReading) -> MaskDataset:
    part = getattr(config.data, name)
    if part is None:
        raise ValueError(f"the config takes a part of `data.{name}`, which it does not describe.")
    where = {key: value for key in PART_KEYS if (value := getattr(part, key)) is not None}
    folders = open_layout(config.data.layout, Path(config.data.root), name, where)
    listed = config.data.quarantine
    everywhere, here = read_quarantine(_quarantine(config.data.root, listed), name) if listed else ([], [])
    data = MaskDataset(
        folders.images,
        folders.masks,
        codec,
        image_pattern=folders.image_pattern,
        mask_pattern=folders.mask_pattern,
        bands=folders.bands,
        stems=folders.stems,
        reading=reading,
        quarantine=[*everywhere, *here],
    )
    if data.quarantined and is_main_process():
        log.warning("data.quarantine leaves %d samples out of %s.", len(data.quarantined), name)
    if lost := sorted(set(here) & set(data.quarantine_unknown)):
        log.warning("data.quarantine names samples that %s does not hold: %s.", name, ", ".join(lost[:5]))
    return data


def _quarantine(root: str, listed: str) -> Path:
    """Below the root of the data, or where a person types it: below the current folder."""
    below = Path(root, listed)
    return Path(listed) if not below.exists() and Path(listed).exists() else below


def _tell_parts(parts: Parts, tell: Callable[[str], None]) -> None:
    counts = [
        f"{len(data)} {name}"
        for name, data in (("training", parts.train), ("validation", parts.val), ("test", parts.test))
        if data is not None
    ]
    tell(f"images: {', '.join(counts)}")
    if parts.val is None:
        tell("no data.val: nothing says which epoch is best, so the last one is kept")
