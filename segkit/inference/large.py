"""Masks of images that need not fit into memory: read by window, decoded in bands, written tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from segkit.data.images import ImageRef
from segkit.data.intensity import Scale, parts_scale
from segkit.formats.codec import PIECE_STEP, Codec
from segkit.formats.limits import max_pixels
from segkit.inference.models import SegmentationModel
from segkit.inference.stitching import Grid, Window, stitch
from segkit.inference.tiling import DEFAULT_TILE, decoded
from segkit.models.devices import autocast
from segkit.ops.sizes import fit_size

if TYPE_CHECKING:
    from segkit.formats.tiff_windows import TiffWindows

# 64 megapixels: 192 MiB in memory as RGB. A smaller image is quicker to read at once.
LARGE_PIXELS = 2**26
# Logits that are kept of the windows side by side; a wider image is computed in panels, one after the other.
_PANEL_BYTES = 2**30
# A line of windows, and what the next one shares with it.
_LINES = 1.5

Progress = Callable[[int, int], None]


def is_large(image: ImageRef) -> bool:
    """Whether an image is a TIFF file of more than 64 megapixels, by its header."""
    return _pixels(image) > LARGE_PIXELS


def goes_by_window(image: ImageRef, codec: Codec, needs_whole: bool = False) -> bool:
    """Whether `predict_large` is the way for an image: a large one, if its mask can be written in pieces.

    An image above the limit of what is read at once goes that way whatever is asked for: there it is refused with a
    message that says what would work.

    Args:
        needs_whole: an overlay or a list of objects is asked for.
    """
    pixels = _pixels(image)
    if pixels > max_pixels():
        return True
    return pixels > LARGE_PIXELS and codec.writes_pieces and not needs_whole


@torch.inference_mode()
def predict_large(
    model: SegmentationModel,
    image: ImageRef,
    codec: Codec,
    out: str | Path,
    stem: str,
    *,
    device: torch.device,
    tile: int | None = None,
    batch_size: int = 1,
    probabilities: bool = False,
    needs_whole: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the mask of a TIFF image as `codec` does, never holding image, logits or mask.

    Memory grows with the window, the number of classes and, up to a limit, the width. Files appear whole or not at
    all.

    Args:
        model: on `device`, in evaluation mode.
        tile: side of the windows in pixels.
        batch_size: windows in one forward pass.
        probabilities: also write `out/_probabilities/STEM.tif`: float16, a page for each class, named after it.
        needs_whole: something is asked for that needs all pixels at once (overlay, objects, post-processing); refused.
        progress: called with (windows done, windows in all).

    Raises:
        ValueError: names the image and what is wrong with it, or what does not go window by window.
    """
    # Imported here: tifffile costs 0.1 s, and most data sets hold no TIFF.
    from segkit.formats.tiff_windows import TiffWindows

    _check_alone(image, needs_whole)
    with TiffWindows(image.path, model.reading.gray) as file:
        _check_size(image, file.size_hw, model)
        side = DEFAULT_TILE if tile is None else tile
        grids = [Grid(file.size_hw, side, columns) for columns in _panels(file.size_hw, side, model)]
        scale = _scale(file, side) if model.reading.normalize != "dataset" else None
        done, total = 0, sum(map(len, grids))

        def windows(grid: Grid) -> Iterator[Window]:
            nonlocal done
            file.keep(slice(grid.lefts[0], grid.lefts[-1] + grid.side_hw[1]))
            for i, j in grid:
                yield Window(0, i, j, _as_stored(file.read(*grid.place(i, j)), scale, device))
                done += 1
                if progress is not None:
                    progress(done, total)

        with (
            codec.writing(out, stem, file.size_hw, image.path) as put,
            _writing_probabilities(probabilities, model, Path(out), stem, image, file.size_hw) as put_probs,
            autocast(device),
        ):
            for grid in grids:
                for _, rows, logits in stitch(model, [grid], windows(grid), batch_size):
                    planes = decoded(model, logits[None])[0].permute(1, 2, 0)
                    put(rows, grid.columns, planes.cpu().numpy().astype(model.format.dtype, copy=False))
                    if put_probs is not None:
                        probs = model.format.probabilities(logits[None])[0].permute(1, 2, 0)
                        put_probs(rows, grid.columns, probs.cpu().numpy())


def _pixels(image: ImageRef) -> int:
    if image.axis is not None or image.bands or image.missing or not image.path.is_file():
        return 0
    from segkit.formats.tiff_windows import tiff_size_hw

    return math.prod(tiff_size_hw(image.path) or (0,))


def _check_alone(image: ImageRef, needs_whole: bool) -> None:
    if image.axis is not None or image.bands or image.missing:
        raise ValueError(f"{image}: is not one TIFF file, and only those are read window by window.")
    if needs_whole:
        raise ValueError(
            f"{image}: is predicted window by window, and an overlay, a list of objects or the model's post-processing "
            "needs all of its pixels at once. Leave these out, or cut the image into pieces."
        )


def _check_size(image: ImageRef, size_hw: tuple[int, int], model: SegmentationModel) -> None:
    if model.reading.neighbours:
        raise ValueError(f"{image}: the model takes slices with their neighbours, which only volumes have.")
    working_hw = fit_size(size_hw, model.resize)
    if working_hw != size_hw:
        raise ValueError(
            f"{image}: is {size_hw[0]}x{size_hw[1]}, too large to be resized to the {working_hw[0]}x{working_hw[1]} at "
            "which the model works. Shrink the image, or train with crops instead of `data.resize`."
        )


def _panels(size_hw: tuple[int, int], side: int, model: SegmentationModel) -> list[slice]:
    """Columns that are computed at a time, so that their lines of windows take no more than a limit."""
    height, width = size_hw
    column_bytes = _LINES * 4 * model.format.num_classes * min(side, height)
    most = max(PIECE_STEP, int(_PANEL_BYTES / column_bytes) // PIECE_STEP * PIECE_STEP)
    count = math.ceil(width / most)
    step = math.ceil(width / count / PIECE_STEP) * PIECE_STEP
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def _scale(file: TiffWindows, side: int) -> Scale:
    """Mean and deviation of the whole image, read twice."""
    height, width = file.size_hw
    tiles = [
        (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return parts_scale(lambda: (file.read(*tile) for tile in tiles))


def _as_stored(pixels: np.ndarray, scale: Scale | None, device: torch.device) -> Tensor:
    """(1, B, h, w) of (h, w, B), normalised where the whole image was."""
    values = pixels if scale is None else scale.apply(pixels)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None].to(device)


def _writing_probabilities(
    wanted: bool, model: SegmentationModel, out: Path, stem: str, image: ImageRef, size_hw: tuple[int, int]
) -> AbstractContextManager[Callable[[slice, slice, np.ndarray], None] | None]:
    if not wanted:
        return nullcontext()
    from segkit.formats.georeference import read_georeference
    from segkit.formats.tiff_pieces import writing_tiles

    path, names = out / "_probabilities" / f"{stem}.tif", model.format.names
    georeference = read_georeference(image.path, size_hw)
    return writing_tiles(path, size_hw, len(names), np.dtype(np.float16), names, georeference)
