"""Answers averaged: one model on several views of an image, or several models on one.

Probabilities are averaged, as the format says what they are, and turned back into logits, so that thresholds, windows,
scores and files go on as with one model. Memory holds a running sum, however many answers there are.

An average is taken where the network computes, before its last upsampling, as long as all answers lie on one grid: a
decoder that ends at a quarter of the side then costs a sixteenth of the memory. Between the points of the grid, logits
of the average are interpolated in place of each answer's logits; docs/better-answers.md says how little that moves.
Answers on different grids (scales, other architectures) meet at full resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkit.data.reading import ImageReading
from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.models import SegmentationModel, open_model
from segkit.inference.views import View, parse_views
from segkit.models.steps import Steps
from segkit.ops.sizes import Resize, fit_size, resample, resize_to_json
from segkit.ops.upsample import CoarseLogits

OneOrSeveral = SegmentationModel | str | Path | Sequence[SegmentationModel | str | Path]
# A grid that answers lie on: shape, `size_hw`, `crop_hw` and `align_corners` of coarse logits.
_Grid = tuple[Any, ...]


class TestTimeAugmentation:
    """A model that looks at several views of each image and averages what it sees.

    Views are made at the model's working size, and of each window where images are cut into windows.

    Args:
        model: any `SegmentationModel`.
        names: see `parse_views`.
    """

    __test__ = False  # pytest takes names that begin with Test for tests

    def __init__(self, model: SegmentationModel, names: str | Iterable[str]) -> None:
        self.model, self.views = model, parse_views(names)
        self.format: MaskFormat = model.format
        self.resize: Resize = model.resize
        self.stride: int = model.stride
        self.postprocess: Steps = model.postprocess

    @property
    def reading(self) -> ImageReading:
        return self.model.reading

    @property
    def in_channels(self) -> int:
        return self.model.in_channels

    def to(self, device: torch.device) -> TestTimeAugmentation:
        self.model = self.model.to(device)
        return self

    def eval(self) -> TestTimeAugmentation:
        self.model = self.model.eval()
        return self

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return self.model.resized(images, size_hw)

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        crop_hw = (images.shape[-2], images.shape[-1])
        # Padded here, at the bottom and on the right as the model itself would: mirrored views, which it would pad on
        # the other side, then lie on the same grid.
        padded = _padded(_movable(images), self.stride).view(images.dtype)
        size_hw = (padded.shape[-2], padded.shape[-1])
        average = _Average(self.format)
        for view in self.views:
            average.add(_cropped(self._seen(view, padded, size_hw), crop_hw))
        return average.mean()

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits:
        stored_hw = (images.shape[-2], images.shape[-1])
        size_hw = fit_size(stored_hw, self.resize, spacing_mm)
        if size_hw == stored_hw:
            return self.coarse_logits(images)
        return CoarseLogits(self.coarse_logits(self.resized(images, size_hw)).full(), stored_hw, align_corners=False)

    def _seen(self, view: View, images: Tensor, size_hw: tuple[int, int]) -> CoarseLogits:
        """Logits of a view, turned back; standing for the size of `images`."""
        if view.scale != 1.0:
            scaled_hw = (max(1, round(size_hw[0] * view.scale)), max(1, round(size_hw[1] * view.scale)))
            images = self.resized(images, scaled_hw)
        logits = self.model.coarse_logits(view.of(_movable(images)).view(images.dtype).contiguous())
        if view.scale != 1.0 or logits.crop_hw not in (None, logits.size_hw):
            return CoarseLogits(view.undo(logits.full()), size_hw, align_corners=False)
        return CoarseLogits(view.undo(logits.values), size_hw, align_corners=logits.align_corners)


class Ensemble:
    """Several models as one: the average of their probabilities.

    Each may have its own architecture, weights and pixel statistics. Thresholds are the average of theirs, as suits
    the average of probabilities; steps of post-processing are those of the first model. Where they work at different
    sizes, each sees whole images at its own, and images cannot be cut into windows.

    Raises:
        ValueError: models that predict different masks, or take different images.
    """

    def __init__(self, models: Sequence[SegmentationModel]) -> None:
        if not models:
            raise ValueError("an ensemble of no models: give one or more.")
        for number, other in enumerate(models[1:], start=2):
            _check_pair(models[0], other, number)
        self.models = list(models)
        self.format: MaskFormat = _shared_format([model.format for model in models])
        self._one_size = len({str(resize_to_json(model.resize)) for model in models}) == 1
        self.resize: Resize = models[0].resize if self._one_size else None
        self.stride: int = max(model.stride for model in models)
        self.postprocess: Steps = models[0].postprocess

    @property
    def reading(self) -> ImageReading:
        return self.models[0].reading

    @property
    def in_channels(self) -> int:
        return self.models[0].in_channels

    def to(self, device: torch.device) -> Ensemble:
        self.models = [model.to(device) for model in self.models]
        return self

    def eval(self) -> Ensemble:
        self.models = [model.eval() for model in self.models]
        return self

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        resized = resample(images.float(), size_hw)
        # In the stored depth, which each model brings to its own; rounded, as training images are.
        return resized if images.is_floating_point() else resized.round().to(images.dtype)

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        if not self._one_size:
            sizes = ", ".join(str(resize_to_json(model.resize)) for model in self.models)
            raise ValueError(
                f"the models of the ensemble work at different sizes ({sizes}), so that windows have no common one. "
                "Leave `tile` out, give images of at most 4 megapixels, or predict with each model alone."
            )
        return self._mean(model.coarse_logits(images) for model in self.models)

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits:
        return self._mean(model.predict_coarse_logits(images, spacing_mm) for model in self.models)

    def _mean(self, answers: Iterable[CoarseLogits]) -> CoarseLogits:
        average = _Average(self.format)
        for logits in answers:
            average.add(logits)
        return average.mean()


def open_models(models: OneOrSeveral, tta: str | Iterable[str] | None = None) -> tuple[SegmentationModel, Codec | None]:
    """One model of one or several, each on the views that `tta` names, and how its masks are written.

    Args:
        models: models, or paths of bundles and run folders; the first path says how masks are written.
        tta: see `parse_views`.
    """
    several = [models] if isinstance(models, str | Path) or not isinstance(models, Sequence) else models
    opened = [open_model(model) if isinstance(model, str | Path) else (model, None) for model in several]
    networks = [with_views(network, tta) for network, _ in opened]
    codec = next((codec for _, codec in opened if codec is not None), None)
    return (networks[0] if len(networks) == 1 else Ensemble(networks)), codec


def with_views(model: SegmentationModel, tta: str | Iterable[str] | None) -> SegmentationModel:
    """The model on the views that `tta` names, see `parse_views`; as it is where `tta` is None.

    Of an ensemble each model makes the views at its own working size.
    """
    if tta is None:
        return model
    if not isinstance(model, Ensemble):
        return TestTimeAugmentation(model, tta)
    seen = Ensemble([with_views(each, tta) for each in model.models])
    # Which may have been tuned since.
    seen.format, seen.postprocess = model.format, model.postprocess
    return seen


class _Average:
    """Mean of answers for one size; answers on one grid share a sum."""

    def __init__(self, format: MaskFormat) -> None:
        self.format = format
        self.sums: dict[_Grid, tuple[CoarseLogits, Tensor, int]] = {}

    def add(self, logits: CoarseLogits) -> None:
        if not logits.upsampled:
            logits = CoarseLogits.of(logits.full())
        probs = self.format.probabilities(logits.values)
        grid = (probs.shape, logits.size_hw, logits.crop_hw, logits.align_corners)
        if grid in self.sums:
            like, total, count = self.sums[grid]
            self.sums[grid] = (like, total.add_(probs), count + 1)
        else:
            self.sums[grid] = (logits, probs, 1)

    def mean(self) -> CoarseLogits:
        means = [(self._logits(*sum), sum[2]) for sum in self.sums.values()]
        if len(means) == 1:
            return means[0][0]
        total, count = None, sum(weight for _, weight in means)
        for logits, weight in means:
            share = self.format.probabilities(logits.full()).mul_(weight / count)
            total = share if total is None else total.add_(share)
        assert total is not None
        return CoarseLogits.of(self.format.logits_of(total))

    def _logits(self, like: CoarseLogits, total: Tensor, count: int) -> CoarseLogits:
        return CoarseLogits(self.format.logits_of(total / count), like.size_hw, like.crop_hw, like.align_corners)


def _padded(images: Tensor, stride: int) -> Tensor:
    """The last row and column repeated until both sides are multiples of `stride`; any dtype."""
    rows, columns = (
        torch.arange(length + -length % stride, device=images.device).clamp_max(length - 1)
        for length in images.shape[-2:]
    )
    if (len(rows), len(columns)) == tuple(images.shape[-2:]):
        return images
    return images[..., rows, :][..., columns]


def _movable(images: Tensor) -> Tensor:
    """The same bits in a dtype whose elements torch moves on every device, which it does not for uint16."""
    return images.view(torch.int16) if images.dtype == torch.uint16 else images


def _cropped(logits: CoarseLogits, crop_hw: tuple[int, int]) -> CoarseLogits:
    return CoarseLogits(logits.values, logits.size_hw, crop_hw, logits.align_corners)


def _shared_format(formats: Sequence[MaskFormat]) -> MaskFormat:
    """The format of the first, each threshold the average of all; none where any has none."""
    thresholds: list[float | None] = []
    for groups in zip(*(format.threshold_groups for format in formats), strict=True):
        values = [group.threshold for group in groups if group.threshold is not None]
        thresholds.append(sum(values) / len(values) if len(values) == len(groups) else None)
    return formats[0].with_thresholds(thresholds)


def _check_pair(first: SegmentationModel, other: SegmentationModel, number: int) -> None:
    """Refuse a model whose answers cannot be averaged with those of the first."""
    mine, theirs = _facts(first), _facts(other)
    differ = [f"{name} is {theirs[name]}, that of model 1 {mine[name]}" for name in mine if mine[name] != theirs[name]]
    if differ:
        raise ValueError(
            f"model {number} of the ensemble: {'; '.join(differ)}. Models whose answers are averaged predict the same "
            "classes by the same activation and take the same images."
        )


def _facts(model: SegmentationModel) -> dict[str, Any]:
    described, reading = model.format.to_dict(), model.reading.for_new_images()
    return {
        "the format": f"{described['format']} {described['activation']}",
        "the list of classes": list(model.format.names),
        "the number of bands": model.in_channels,
        **{f"the option {name} of reading": getattr(reading, name) for name in reading.__dataclass_fields__},
    }
