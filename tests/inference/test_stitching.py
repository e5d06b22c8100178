"""Bands of blended windows, against a blend of whole arrays."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.inference import stitching
from segkit.inference.stitching import Grid, RowResampler, Window, stitch, window_starts
from segkit.inference.tiling import batch_logits, batch_planes, image_logits, image_planes
from segkit.ops.sizes import resample
from segkit.ops.upsample import CoarseLogits


class Rough:
    """A model whose logits are means of cells of `stride` pixels of the window that it is given.

    A window that starts elsewhere has other cells: blending is more than joining.
    """

    resize = None

    def __init__(self, stride: int = 4, align_corners: bool = True) -> None:
        self.stride, self.align_corners = stride, align_corners
        self.format = MaskFormat.multiclass(["a", "b", "c"])
        self.batches: list[tuple[int, ...]] = []

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        self.batches.append(tuple(images.shape))
        height, width = images.shape[-2:]
        pad = -width % self.stride, -height % self.stride
        padded = F.pad(images.float(), (0, pad[0], 0, pad[1]), mode="replicate")
        values = F.avg_pool2d(padded, self.stride) if self.stride > 1 else padded
        return CoarseLogits(values, tuple(padded.shape[-2:]), (height, width), self.align_corners)

    def predict_coarse_logits(self, images: Tensor, spacing_mm=None) -> CoarseLogits:
        return self.coarse_logits(images)

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return resample(images.float(), size_hw)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 255, (1, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def blended(model: Rough, image: Tensor, side: int) -> Tensor:
    """The textbook way: sums of all windows and of all weights, in float64."""
    height, width = image.shape[-2:]
    side_h, side_w = min(side, height), min(side, width)
    bells = []
    for length in (side_h, side_w):
        offsets = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        bells.append(torch.exp(-0.5 * (offsets / (length / 8)) ** 2))
    weight = bells[0][:, None] * bells[1]
    total, weights = torch.zeros(1, 3, height, width, dtype=torch.float64), torch.zeros(height, width).double()
    for top, left in itertools.product(window_starts(height, side_h), window_starts(width, side_w)):
        rows, columns = slice(top, top + side_h), slice(left, left + side_w)
        total[..., rows, columns] += model.coarse_logits(image[..., rows, columns]).full().double() * weight
        weights[rows, columns] += weight
    return total / weights


@pytest.mark.parametrize(
    ("size_hw", "side"),
    [
        ((150, 210), 64),
        ((97, 140), 50),  # windows that are no multiple of the cells, and three of them at some pixels
        ((70, 300), 64),  # two rows of windows that share nearly all
        ((40, 200), 64),  # lower than a window
        ((200, 40), 64),
        ((64, 64), 64),
    ],
)
@pytest.mark.parametrize(("stride", "align_corners"), [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("numbers", [2000, 2**22])
def test_bands_are_the_blend_of_all_windows(size_hw, side, stride, align_corners, numbers, monkeypatch):
    monkeypatch.setitem(stitching._BAND_NUMBERS, "cpu", numbers)
    model, image = Rough(stride, align_corners), noise(*size_hw)
    expected = blended(model, image, side)
    grid, pieces, last = Grid(size_hw, side), [], 0
    windows = [Window(0, i, j, image[..., slice(*r), slice(*c)]) for i, j in grid for r, c in [edges(grid, i, j)]]
    for _, rows, band in stitch(model, [grid], windows, 1):
        assert rows.start == last
        assert band.shape == (3, rows.stop - rows.start, size_hw[1])
        assert band.numel() <= numbers or rows.stop - rows.start == 1
        pieces.append(band)
        last = rows.stop
    assert last == size_hw[0]
    assert torch.allclose(torch.cat(pieces, 1).double(), expected[0], atol=2e-4)


def edges(grid: Grid, i: int, j: int) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = grid.place(i, j)
    return (rows.start, rows.stop), (columns.start, columns.stop)


@pytest.mark.parametrize("stride", [1, 4])
def test_columns_by_themselves_are_those_of_the_whole(stride):
    """As where an image is too wide: the same windows, of which some are needed twice."""
    model, image = Rough(stride), noise(90, 300)
    expected = image_logits(model, image, 64).full()[0]
    for columns in (slice(0, 128), slice(128, 256), slice(256, 300), slice(140, 150)):
        grid = Grid((90, 300), 64, columns)
        windows = (Window(0, i, j, image[(..., *grid.place(i, j))]) for i, j in grid)
        for _, rows, band in stitch(model, [grid], windows, 1):
            assert torch.allclose(band, expected[:, rows, columns], atol=1e-4)
    assert len(Grid((90, 300), 64, slice(140, 150))) == 2 * 2


def test_weights_of_a_single_window_are_one():
    """So that images that fit are what the network said, bit for bit."""
    model, image = Rough(1), noise(50, 60)
    assert torch.equal(image_logits(model, image, 64).full(), image.float())
    grid = Grid((50, 60), 64)
    assert torch.equal(grid.row_weights(0, image.device), torch.ones(50))


def test_windows_of_images_of_different_size_share_batches():
    model = Rough()
    images = [noise(100, 120, seed=1), noise(40, 50, seed=2), noise(150, 64, seed=3), noise(40, 50, seed=4)]
    alone = [image_logits(Rough(), image, 64).full() for image in images]
    found = batch_logits(model, images, tile=64, batch_size=4)
    assert [tuple(logits.shape) for logits in found] == [(1, 3, *image.shape[-2:]) for image in images]
    for logits, expected in zip(found, alone, strict=True):
        assert torch.allclose(logits.full(), expected, atol=1e-4)
    # Two small ones together; then 6 windows of the first image and 3 of the third, four at a time.
    assert [batch[0] for batch in model.batches] == [2, 4, 4, 1]
    assert model.batches[0][2:] == (40, 50)
    again = batch_logits(model, images, tile=64, batch_size=4)
    assert all(torch.equal(a.full(), b.full()) for a, b in zip(found, again, strict=True))
    planes = batch_planes(model, images, tile=64, batch_size=4)
    for logits, pred in zip(found, planes, strict=True):
        assert torch.equal(pred, model.format.decode(logits.full()))


def test_bands_and_depths_that_differ_are_not_put_into_one_batch():
    model = Rough(1)
    images = [noise(100, 70), noise(100, 70).float(), noise(100, 70)]
    found = batch_logits(model, images, tile=64)
    assert [batch[0] for batch in model.batches] == [3, 3, 2, 3, 1]
    assert torch.allclose(found[1].full(), images[1], atol=1e-4)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0: expected 1 or more"):
        batch_logits(Rough(), [noise(40, 50)], batch_size=0)


def test_logits_left_coarse_in_some_windows_only():
    """As where two threads share a network, and one of them puts its last upsampling back."""

    class Changing(Rough):
        def coarse_logits(self, images: Tensor) -> CoarseLogits:
            logits = super().coarse_logits(images)
            return CoarseLogits.of(logits.full()) if len(self.batches) % 3 == self.phase else logits

    image = noise(150, 210)
    expected = blended(Rough(), image, 64)
    for phase in range(3):
        model = Changing()
        model.phase = phase
        assert torch.allclose(image_logits(model, image, 64).full().double(), expected, atol=2e-4)


@pytest.mark.parametrize("to_hw", [(40, 70), (7, 9), (100, 33), (55, 20), (20, 55), (21, 30), (1, 1)])
def test_bands_at_another_size_are_those_of_the_whole(to_hw, monkeypatch):
    monkeypatch.setitem(stitching._BAND_NUMBERS, "cpu", 200)
    logits = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], to_hw, mode="bilinear", align_corners=False)[0]
    resampler, pieces, last = RowResampler((20, 30), to_hw), [], 0
    for start, stop in itertools.pairwise([0, 1, 2, 9, 10, 17, 20]):
        for rows, band in resampler.add(slice(start, stop), logits[:, start:stop]):
            assert rows.start == last
            assert band.shape[1] == rows.stop - rows.start
            pieces.append(band)
            last = rows.stop
    assert torch.allclose(torch.cat(pieces, 1), expected, atol=1e-5)


def test_planes_of_a_model_that_works_at_another_size():
    model, images = Rough(), torch.cat([noise(97, 140), noise(97, 140, seed=1)])
    for resize in (70, 300, [50, 200]):
        model.resize = resize
        expected = model.format.decode(image_logits(model, images, 40).full())
        found = image_planes(model, images, 40)
        assert found.shape == (2, 1, 97, 140)
        # A tie may fall to either side.
        assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize("height", [200, 2000])
def test_what_is_kept_does_not_grow_with_the_height(height):
    """Numbers that a stitcher holds after each window; a line is two windows of 64 x 64 x 3."""
    grid, model = Grid((height, 80), 64), Rough(1)
    stitcher, most = stitching.Stitcher(grid), 0
    for i, j in grid:
        for _ in stitcher.add(i, j, model.coarse_logits(noise(64, 64))):
            pass
        held = [window._values for line in stitcher._lines for window in line.windows]
        assert all(values.untyped_storage().nbytes() == 4 * values.numel() for values in held[:-1])
        most = max(most, sum(values.numel() for values in held))
    assert most <= 1.3 * 2 * 3 * 64 * 64


@pytest.mark.parametrize(("length", "side"), [(1, 8), (8, 8), (9, 8), (100, 32), (1000, 64), (33, 32)])
def test_windows_cover_everything_and_overlap(length, side):
    starts = window_starts(length, side)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - side)
    for here, there in itertools.pairwise(starts):
        assert here < there <= here + side * 0.75 + 1


@pytest.mark.parametrize(("length", "side"), [(1, 8), (8, 8), (9, 8), (100, 32), (1000, 64), (33, 32)])
def test_shares_of_windows_add_up_to_one(length, side):
    grid = Grid((length, 5), side)
    total = torch.zeros(length)
    for i, top in enumerate(grid.tops):
        total[top : top + grid.side_hw[0]] += grid.row_weights(i, total.device)
    assert torch.allclose(total, torch.ones(length))
    assert len(grid) == len(grid.tops) == math.ceil(max(0, length - side) / int(side * 0.75)) + 1
