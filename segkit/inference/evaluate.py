"""Scores of a model, or of a folder of masks, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from segkit.data.datasets import MaskDataset
from segkit.data.images import ImageRef
from segkit.data.loaders import eval_loader
from segkit.data.prefetch import DeviceLoader
from segkit.data.sample import Batch
from segkit.formats.codec import Codec
from segkit.inference.averaging import with_views
from segkit.inference.models import SegmentationModel
from segkit.inference.postprocess import Gathering, find_wholes, planes_of, whole_spacing_mm
from segkit.inference.tiling import check_tile, image_planes
from segkit.inference.volumes import answer_volume, check_axes
from segkit.metrics.counts import PixelCounts
from segkit.metrics.scores import Scores
from segkit.models.devices import autocast, pick_device

Progress = Callable[[int, int], None]
Answer = TypeVar("Answer")


@torch.inference_mode()
def evaluate(
    model: SegmentationModel,
    data: MaskDataset,
    *,
    device: str = "auto",
    batch_size: int = 4,
    tile: int | None = None,
    tta: str | Iterable[str] | None = None,
    axes: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores of `model` on every sample of `data`, counted at the stored size.

    Post-processing of the model is part of what is scored.

    Where torch.distributed runs, each process takes a share of the images, and all get the scores of the whole.

    Args:
        device: auto, cpu, cuda or mps.
        batch_size: images of one size that are computed together.
        tile, tta: see `Predictor`.
        axes: average over these axes of volumes, as `Predictor.predict_files` does; what is scored is slices across the
            first axis of `model.reading` alone. Default: those that the model has learned from.
        progress: called with (images done, images in all).
    """
    check_comparable(model, data)
    check_tile(tile)
    data = as_stored(data)
    place = pick_device(device)
    model = with_views(model, tta).to(place).eval()
    counts = PixelCounts(model.format).to(place)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    chosen = check_axes(axes, model.reading)
    if len(chosen) > 1 or len(data.reading.axis) > 1:
        data = data.across(model.reading.main_axis)
    if len(chosen) > 1:
        _count_volumes(counts, model, data, chosen, place, batch_size, tile, progress, rank, world_size)
    elif model.postprocess:
        _count_wholes(counts, model, data, place, batch_size, tile, workers, progress, rank, world_size)
    else:
        loader = eval_loader(data, batch_size, workers=workers, rank=rank, world_size=world_size)
        for batch, pred in each_answer(image_planes, model, data, loader, place, tile, progress):
            counts.update(pred, batch.target, batch.indices)
    return Scores(counts.compute())


def each_answer(
    answer: Callable[..., Answer],
    model: SegmentationModel,
    data: MaskDataset,
    loader: DataLoader,
    place: torch.device,
    tile: int | None,
    progress: Progress | None,
) -> Iterator[tuple[Batch, Answer]]:
    """Every batch of `loader` on the device, with what the model says of it at the stored size.

    Args:
        answer: `image_planes` or `image_logits`.
        loader: of `eval_loader`, of `data` or a part of it.
        progress: called with (images done, images in all).
    """
    done = 0
    for parts in DeviceLoader(loader, place):
        for batch in parts:
            with _naming(data, batch.stems[0]), autocast(place):
                found = answer(model, batch.images, tile, batch.spacing_mm)
            yield batch, found
            done += len(batch)
        if progress is not None:
            progress(done, len(data))


def check_comparable(model: SegmentationModel, data: MaskDataset) -> None:
    """Refuse masks that mean something else than what the model predicts, and images read in another way."""
    if not data.format.shares_planes(model.format):
        raise ValueError(
            f"the masks are {data.format.describe()}, the model predicts {model.format.describe()}: "
            "these cannot be compared."
        )
    check_normalize(model, data)


def check_normalize(model: SegmentationModel, data: MaskDataset) -> None:
    """Refuse images that are not normalised as the model was trained."""
    if data.reading.normalize != model.reading.normalize:
        raise ValueError(
            f"{data.images}: read with normalize={data.reading.normalize!r}, but the model takes images with "
            f"{model.reading.normalize!r}. Open the data with `reading=model.reading`."
        )


def as_stored(data: MaskDataset) -> MaskDataset:
    """The same samples, neither augmented nor resized: what scores are counted on."""
    plain = data.without_augment()
    plain.resize = None
    return plain


def evaluate_predictions(
    predictions: str | Path, masks: str | Path, codec: Codec, progress: Progress | None = None
) -> Scores:
    """Scores of a folder of masks against another, both held by `codec`; no model and no images are needed.

    Raises:
        ValueError: a mask without a prediction, a prediction without a mask, or two sizes.
    """
    truth, given = codec.stems(masks), codec.stems(predictions)
    if not truth:
        raise ValueError(f"{masks}: no masks here that the codec {codec.name!r} reads.")
    _check_complete(predictions, truth, given)
    beyond = sorted(set(given) - set(truth))
    if beyond:
        raise ValueError(f"{predictions}: {len(beyond)} predictions have no mask in {masks}: {beyond[:5]}.")
    return _score_files(predictions, masks, codec, {stem: stem for stem in truth}, progress)


def evaluate_predictions_of(predictions: str | Path, data: MaskDataset, progress: Progress | None = None) -> Scores:
    """Scores of a folder of predicted masks against those of `data`, written by the same codec.

    A prediction is named by the file of its image, as `segkit predict` names it, or by its sample. Predictions of
    other images may lie beside them: `data` says which samples are meant.

    Raises:
        ValueError: a sample without a prediction, or two sizes.
    """
    given = data.codec.stems(predictions)
    there = set(given)
    names = {}
    for index, stem in enumerate(data.stems):
        name = data.prediction_stem(index)
        names[stem if stem in there and name not in there else name] = data.mask_stem(index)
    _check_complete(predictions, names, given)
    return _score_files(predictions, data.masks, data.codec, names, progress)


def _count_volumes(
    counts: PixelCounts,
    model: SegmentationModel,
    data: MaskDataset,
    axes: Sequence[str],
    place: torch.device,
    batch_size: int,
    tile: int | None,
    progress: Progress | None,
    rank: int,
    world_size: int,
) -> None:
    """Count the slices in `data` of answers that are averaged over axes; each process takes whole volumes."""
    numbers: dict[ImageRef, list[int]] = {}
    for number in range(len(data)):
        numbers.setdefault(replace(data.image_ref(number), index=None), []).append(number)
    done = 0
    for image in list(numbers)[rank::world_size]:
        with _naming(data, data.stems[numbers[image][0]]):
            answer = answer_volume(model, image, axes, device=place, tile=tile, batch_size=batch_size)
        for number in numbers[image]:
            index = data.image_ref(number).index
            assert index is not None
            target = as_target(data.read(number).planes).to(place)
            counts.update(as_target(answer.planes[index]).to(place), target, [number])
        done += len(numbers[image])
        if progress is not None:
            progress(done, len(data))


def _count_wholes(
    counts: PixelCounts,
    model: SegmentationModel,
    data: MaskDataset,
    place: torch.device,
    batch_size: int,
    tile: int | None,
    workers: int | None,
    progress: Progress | None,
    rank: int,
    world_size: int,
) -> None:
    """Count post-processed planes: each process takes whole volumes, whose regions hang together across slices."""
    format, wholes = model.format, find_wholes(data)[rank::world_size]
    own = [number for whole in wholes for number in whole.numbers]
    loader = eval_loader(data.subset([data.stems[number] for number in own]), batch_size, workers=workers)
    gathering: Gathering[tuple[np.ndarray, Tensor]] = Gathering(wholes)
    for batch, pred in each_answer(image_planes, model, data, loader, place, tile, progress):
        assert batch.indices is not None
        for index, planes, target in zip(batch.indices, planes_of(pred, format), batch.target.cpu(), strict=True):
            ready = gathering.add(own[index], (planes, target))
            if ready is not None:
                whole, items = ready
                spacing_mm = whole_spacing_mm(data, whole, batch.spacing_mm)
                with _naming(data, data.stems[whole.numbers[0]]):
                    done = whole.apply([planes for planes, _ in items], model.postprocess, format, spacing_mm)
                for number, planes, (_, target) in zip(whole.numbers, done, items, strict=True):
                    counts.update(as_target(planes), target[None], [number])


@contextmanager
def _naming(data: MaskDataset, stem: str) -> Iterator[None]:
    """Say in errors which image is meant."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{data.images}, {stem}: {error}") from error


def _check_complete(predictions: str | Path, expected: Collection[str], given: Iterable[str]) -> None:
    missing = sorted(set(expected).difference(given))
    if missing:
        raise ValueError(f"{predictions}: {len(missing)} of {len(expected)} masks have no prediction: {missing[:5]}.")


def _score_files(
    predictions: str | Path,
    masks: str | Path,
    codec: Codec,
    names: Mapping[str, str],
    progress: Progress | None,
) -> Scores:
    """Scores of predictions; `names` maps the name of each to that of its mask."""
    counts = PixelCounts(codec.format)
    for number, (stem, mask) in enumerate(names.items(), start=1):
        for path in codec.files(predictions, stem):
            codec.check_like(masks, mask, path)
        pred, target = codec.read(predictions, stem), codec.read(masks, mask)
        if pred.shape != target.shape:
            raise ValueError(
                f"{stem}: the prediction is {pred.shape[0]}x{pred.shape[1]}, the mask {target.shape[0]}x"
                f"{target.shape[1]} (height x width). Predictions are scored at the size of the mask."
            )
        counts.update(as_target(pred), as_target(target))
        if progress is not None:
            progress(number, len(names))
    return Scores(counts.compute())


def as_target(planes: np.ndarray) -> Tensor:
    """(1, P, H, W) of (H, W, P) planes."""
    moved = planes.transpose(2, 0, 1)[None]
    return torch.from_numpy(np.ascontiguousarray(moved if planes.dtype == np.uint8 else moved.astype(np.int32)))
