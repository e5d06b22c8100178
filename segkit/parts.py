"""The data of an experiment: from the sections `masks` and `data` of a config to codecs and data sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.config import Experiment, PartConfig
from segkit.data.cache import PLACES
from segkit.data.datasets import MaskDataset, check_training_sizes
from segkit.data.layouts import find_layout, open_layout
from segkit.data.reading import ImageReading
from segkit.data.sets.layout import PART_KEYS
from segkit.data.splits import fold_stems, read_quarantine, split_stems
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.ops.sizes import Resize, Spacing, is_one_size
from segkit.processes import is_main_process

log = logging.getLogger("segkit")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """The data of an experiment.

    Attributes:
        train: augmented, at the model's working size.
        val, test: as stored; None where the config names none.
        held_out: the fold that `data.fold` leaves out of training, as stored.
    """

    train: MaskDataset
    val: MaskDataset | None
    test: MaskDataset | None
    held_out: MaskDataset | None = None

    def named(self) -> dict[str, MaskDataset]:
        """Those that are there, by name."""
        found = {"train": self.train, "val": self.val, "test": self.test, "held_out": self.held_out}
        return {name: data for name, data in found.items() if data is not None}


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
    if spec.get("name") == "nifti":
        if spec.get("axis", axis) not in (axis, config.data.axis):
            raise ValueError(
                f"masks.codec.axis is {spec['axis']}, but data.axis is {axis}: images and masks are cut alike."
            )
        spec["axis"] = axis
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
    """One part of the data as it is stored: train, val, test or held_out.

    Args:
        reading: of the model that is scored; default that of `config`.
    """
    reading = reading or image_reading(config)
    source = _source_of(config, name)
    return _share(config, name, _open_folders(config, source, codec, reading))


def held_out_stems(folds: Sequence[Experiment], codec: Codec) -> list[list[str]]:
    """What each of these configs leaves out, which differ in `data.fold` alone: the folders are opened once."""
    data = _open_folders(folds[0], "train", codec, image_reading(folds[0]))
    return [_share(fold, "held_out", data).stems for fold in folds]


def open_parts(config: Experiment, codec: Codec, progress: Any = None) -> Parts:
    """All parts; the training part with crop, resize and augmentation. Parts with a cache make it, or find it made.

    Args:
        progress: see `train_experiment`.
    """
    from segkit.data.augment import build_augment

    focus = None if config.data.focus is None else config.data.focus.model_dump()
    augment = build_augment(config.augment, codec.format, crop=config.data.crop, focus=focus)
    names = [name for name in ("train", "val", "test") if name == "train" or getattr(config.data, name) is not None]
    names += [] if config.data.fold is None else ["held_out"]
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
    return Parts(train, parts.get("val"), parts.get("test"), parts.get("held_out"))


def scored_part(config: Experiment, split: str | None) -> str:
    """The part that `--split` names; default held_out in a fold, else test, or val where the config has no test."""
    folded = config.data.fold is not None
    part = split or ("held_out" if folded else "test" if config.data.test is not None else "val")
    known = ["train", "val", "test", *(["held_out"] if folded else [])]
    if part not in known:
        raise ValueError(f"--split is {part!r}: expected {', '.join(known[:-1])} or {known[-1]}.")
    return part


def verify(parts: Parts, config: Experiment, progress: Any) -> None:
    """Read every sample once, so that a bad one is named before training starts, not an hour later.

    Raises:
        ValueError: samples that cannot be read, or what `check_parts` refuses.
    """
    from segkit.inspection.before_training import PartSurvey, check_parts

    resize, surveys = working_size(config), {}
    for name, data in parts.named().items():
        seen = data.without_augment()
        seen.resize = resize  # the model's, for all parts: one that needs a spacing is known now
        surveys[name] = PartSurvey(data)
        with progress(f"checking {name}") as update:
            sizes = seen.verify(progress=update, take=surveys[name].take)
        # A list of transforms may cut on its own.
        one_size = config.data.crop is not None or is_one_size(resize)
        if name == "train" and not one_size and isinstance(config.augment, str):
            check_training_sizes(sizes, 2 if config.train.batch_size == "auto" else config.train.batch_size)
        trained, bands = (part.read(0).image.shape[2] for part in (parts.train, data))
        if bands != trained:
            raise ValueError(
                f"{data.images}: images of data.{name} have {bands} bands, those of data.train have {trained}. "
                "All parts need the same bands."
            )
    check_parts(surveys, config.data.leaks)


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
    if name == "held_out":
        return "train"
    return _described(config, name).from_ or name


def _described(config: Experiment, name: str) -> PartConfig:
    part = getattr(config.data, name)
    if part is None:
        there = list(find_layout(config.data.layout).parts(Path(config.data.root)))
        folders = "{}" if name in there else "{images: DIR, masks: DIR}"
        raise ValueError(f"the config has no `data.{name}`. Add it, such as `{name}: {folders}`.")
    return part


def _share(config: Experiment, name: str, data: MaskDataset) -> MaskDataset:
    """What the part called `name` takes of `data`, or what is left for it."""
    source, stems = _source_of(config, name), data.stems
    shares: dict[str, list[str]] = {}
    for taker in ("val", "test"):
        taking = getattr(config.data, taker)
        if taking is not None and taking.from_ == source:
            stems, shares[taker] = split_stems(stems, taking.fraction, taking.seed, taking.group)
    fold = config.data.fold
    if fold is not None and source == "train":
        # The test share is that of a run without folds; what chooses the best epoch is taken from what a fold leaves.
        dealt = fold_stems([*stems, *shares.get("val", [])], fold.of, fold.seed, fold.group)
        shares["held_out"] = dealt.pop(fold.number - 1)
        stems = sorted(stem for part in dealt for stem in part)
        if "val" in shares:
            val = config.data.val
            assert val is not None
            stems, shares["val"] = split_stems(stems, val.fraction, val.seed, val.group)
    return data.subset(shares.get(name, stems))


def _cached(config: Experiment, name: str, data: MaskDataset, progress: Any) -> MaskDataset:
    with progress(f"decoding {name}") as update:
        settings = config.data
        return data.cached(settings.cache, folder=settings.cache_dir, max_gib=settings.cache_gib, progress=update)


def _open_folders(config: Experiment, name: str, codec: Codec, reading: ImageReading) -> MaskDataset:
    part = _described(config, name)
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
