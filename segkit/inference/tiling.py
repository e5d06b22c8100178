"""Logits and planes of images of any size: whole, or window by window where they are large."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segkit.inference.models import SegmentationModel
from segkit.inference.stitching import Band, Grid, RowResampler, Window, stitch
from segkit.ops.sizes import fit_size
from segkit.ops.upsample import CoarseLogits

# Above this, an image is cut into windows without being asked: 4 megapixels at the model's working size.
WHOLE_PIXELS = 4 * 1024 * 1024
DEFAULT_TILE = 1024

SpacingMm = Sequence[float] | None


def image_logits(
    model: SegmentationModel, images: Tensor, tile: int | None = None, spacing_mm: SpacingMm = None
) -> CoarseLogits:
    """Logits for the stored size. Those of a large image take C numbers for each pixel: planes of it need no more
    than `image_planes`.

    Args:
        images: (N, B, H, W) as stored, on the model's device.
        tile: side of the windows in pixels of the model's working size; None cuts only images above 4 megapixels.
        spacing_mm: (row, column) distances of all images, where the model works at a `Spacing`.

    Returns:
        Standing for (N, C, H, W).
    """
    if _plan(model, images, tile, spacing_mm).grid is None:
        return model.predict_coarse_logits(images, spacing_mm)
    found = batch_logits(model, images.split(1), tile, [spacing_mm] * len(images))
    return replace(found[0], values=_joined([logits.values for logits in found]))


def image_planes(
    model: SegmentationModel, images: Tensor, tile: int | None = None, spacing_mm: SpacingMm = None
) -> Tensor:
    """(N, P, H, W) planes as `format.decode` gives them; arguments as for `image_logits`.

    Of images that are cut into windows, memory for logits grows with the window and the width, not with the height.
    """
    if _plan(model, images, tile, spacing_mm).grid is None:
        return decoded(model, model.predict_coarse_logits(images, spacing_mm))
    return _joined(batch_planes(model, images.split(1), tile, [spacing_mm] * len(images)))


def batch_logits(
    model: SegmentationModel,
    images: Sequence[Tensor],
    tile: int | None = None,
    spacing_mm: Sequence[SpacingMm] | None = None,
    batch_size: int | None = None,
) -> list[CoarseLogits]:
    """Logits of images of different size, in the order given; a function of the list alone.

    Args:
        images: (1, B, H, W) each, as stored, on the model's device.
        tile: as for `image_logits`.
        spacing_mm: (row, column) distances of each image, where the model works at a `Spacing`.
        batch_size: images of one size, or windows of whatever images, that are computed together; by default as many
            as there are images.

    Returns:
        Standing for (1, C, H, W) each.
    """
    plans = _plans(model, images, tile, spacing_mm)
    size = _batch_size(batch_size, images)
    found: dict[int, CoarseLogits] = dict(_whole(model, images, plans, size))
    totals: dict[int, Tensor] = {}
    for number, rows, logits in _bands_of(model, images, plans, size):
        if number not in totals:
            totals[number] = logits.new_empty((1, len(logits), *plans[number].size_hw))
        totals[number][0, :, rows] = logits
    for number, total in totals.items():
        # Resize logits, not planes: a decision after interpolation keeps borders smooth.
        found[number] = CoarseLogits(total, plans[number].stored_hw, align_corners=False)
    return [found[number] for number in range(len(images))]


def batch_planes(
    model: SegmentationModel,
    images: Sequence[Tensor],
    tile: int | None = None,
    spacing_mm: Sequence[SpacingMm] | None = None,
    batch_size: int | None = None,
) -> list[Tensor]:
    """(1, P, H, W) planes of each image; arguments as for `batch_logits`, memory as for `image_planes`."""
    plans = _plans(model, images, tile, spacing_mm)
    size, format = _batch_size(batch_size, images), model.format
    found: dict[int, Tensor] = {}
    for number, whole in _whole(model, images, plans, size):
        found[number] = decoded(model, whole)
    resamplers: dict[int, RowResampler] = {}
    for number, rows, logits in _bands_of(model, images, plans, size):
        plan = plans[number]
        if number not in found:
            shape = (1, format.num_planes, *plan.stored_hw)
            found[number] = torch.empty(shape, dtype=format.torch_dtype, device=logits.device)
            resamplers[number] = RowResampler(plan.size_hw, plan.stored_hw)
        for place, band in resamplers[number].add(rows, logits):
            found[number][:, :, place] = decoded(model, band[None])
    return [found[number] for number in range(len(images))]


def decoded(model: SegmentationModel, logits: Tensor | CoarseLogits) -> Tensor:
    """`format.decode`, to be called where the model runs: under autocast, upsampling would lose digits."""
    values = CoarseLogits.of(logits).values
    with torch.autocast(values.device.type, enabled=False):
        return model.format.decode(logits)


def check_tile(tile: int | None) -> None:
    """Refuse windows too small to see anything in."""
    if tile is not None and tile < 32:
        raise ValueError(f"tile is {tile}: windows need a side of at least 32 pixels.")


@dataclass(frozen=True)
class _Plan:
    """How one image is computed.

    Attributes:
        stored_hw: its size.
        size_hw: that at which the model works.
        spacing_mm: (row, column) distances, if known.
        grid: of the windows at the working size; None where it is computed whole.
    """

    stored_hw: tuple[int, int]
    size_hw: tuple[int, int]
    spacing_mm: SpacingMm
    grid: Grid | None


def _plans(
    model: SegmentationModel, images: Sequence[Tensor], tile: int | None, spacing_mm: Sequence[SpacingMm] | None
) -> list[_Plan]:
    spacings = [None] * len(images) if spacing_mm is None else spacing_mm
    return [_plan(model, image, tile, spacing) for image, spacing in zip(images, spacings, strict=True)]


def _plan(model: SegmentationModel, image: Tensor, tile: int | None, spacing_mm: SpacingMm) -> _Plan:
    stored_hw = (image.shape[-2], image.shape[-1])
    height, width = size_hw = fit_size(stored_hw, model.resize, spacing_mm)
    side = tile if tile is not None else (DEFAULT_TILE if height * width > WHOLE_PIXELS else None)
    whole = side is None or (height <= side and width <= side)
    return _Plan(stored_hw, size_hw, spacing_mm, None if whole or side is None else Grid(size_hw, side))


def _batch_size(batch_size: int | None, images: Sequence[Tensor]) -> int:
    size = len(images) if batch_size is None else batch_size
    if images and size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")
    return size


def _whole(
    model: SegmentationModel, images: Sequence[Tensor], plans: Sequence[_Plan], batch_size: int
) -> Iterator[tuple[int, CoarseLogits]]:
    """(number, logits) of the images that are not cut; those of one size are computed together."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for number, (image, plan) in enumerate(zip(images, plans, strict=True)):
        if plan.grid is None:
            alike[image.shape, image.dtype, plan.size_hw].append(number)
    for numbers in alike.values():
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            logits = model.predict_coarse_logits(_joined([images[n] for n in batch]), plans[batch[0]].spacing_mm)
            for place, number in enumerate(batch):
                yield number, replace(logits, values=logits.values[place : place + 1])


def _bands_of(
    model: SegmentationModel, images: Sequence[Tensor], plans: Sequence[_Plan], batch_size: int
) -> Iterator[Band]:
    """Bands of the images that are cut, at the size at which the model works."""
    # Windows of one shape follow each other, whatever images they are of, so that they fill batches.
    alike: dict[tuple, list[tuple[int, Grid]]] = defaultdict(list)
    for number, (image, plan) in enumerate(zip(images, plans, strict=True)):
        if plan.grid is not None:
            alike[plan.grid.side_hw, image.shape[1], image.dtype].append((number, plan.grid))
    order = [entry for group in alike.values() for entry in group]

    def windows() -> Iterator[Window]:
        for place, (number, grid) in enumerate(order):
            image, plan = images[number], plans[number]
            if plan.size_hw != plan.stored_hw:
                image = model.resized(image, plan.size_hw)
            for i, j in grid:
                rows, columns = grid.place(i, j)
                yield Window(place, i, j, image[..., rows, columns])

    for place, rows, logits in stitch(model, [grid for _, grid in order], windows(), batch_size):
        yield order[place][0], rows, logits


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(N, ...) of N parts (1, ...); a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
