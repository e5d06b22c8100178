"""Scores of a model, or of a folder of masks, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from segkit.data.datasets import MaskDataset
from segkit.data.loaders import eval_loader
from segkit.data.prefetch import DeviceLoader
from segkit.formats.codec import Codec
from segkit.inference.models import SegmentationModel
from segkit.inference.tiling import check_tile, image_logits
from segkit.metrics.counts import PixelCounts
from segkit.metrics.scores import Scores
from segkit.models.devices import autocast, pick_device

Progress = Callable[[int, int], None]


@torch.inference_mode()
def evaluate(
    model: SegmentationModel,
    data: MaskDataset,
    *,
    device: str = "auto",
    batch_size: int = 4,
    tile: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores of `model` on every sample of `data`, counted at the stored size.

    Where torch.distributed runs, each process takes a share of the images, and all get the scores of the whole.

    Args:
        device: auto, cpu, cuda or mps.
        batch_size: images of one size that are computed together.
        tile: see `Predictor`.
        progress: called with (images done, images in all).
    """
    if not data.format.shares_planes(model.format):
        raise ValueError(
            f"the masks are {data.format.describe()}, the model predicts {model.format.describe()}: "
            "these cannot be compared."
        )
    check_tile(tile)
    check_normalize(model, data)
    data = as_stored(data)
    place = pick_device(device)
    model = model.to(place).eval()
    counts = PixelCounts(model.format).to(place)
    done = 0
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loader = eval_loader(data, batch_size, workers=workers, rank=rank, world_size=world_size)
    for parts in DeviceLoader(loader, place):
        for batch in parts:
            try:
                with autocast(place):
                    logits = image_logits(model, batch.images, tile, batch.spacing_mm)
            except ValueError as error:
                raise ValueError(f"{data.images}, {batch.stems[0]}: {error}") from error
            counts.update(model.format.decode(logits), batch.target, batch.indices)
            done += len(batch)
        if progress is not None:
            progress(done, len(data))
    return Scores(counts.compute())


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
        counts.update(_as_target(pred), _as_target(target))
        if progress is not None:
            progress(number, len(names))
    return Scores(counts.compute())


def _as_target(planes: np.ndarray) -> Tensor:
    moved = planes.transpose(2, 0, 1)[None]
    return torch.from_numpy(np.ascontiguousarray(moved if planes.dtype == np.uint8 else moved.astype(np.int32)))
