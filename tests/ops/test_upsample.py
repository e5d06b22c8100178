"""Tiles of upsampled logits are pieces of `F.interpolate`, and gradients go back as autograd sends them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segkit.ops import upsample
from segkit.ops.upsample import CoarseLogits, TileReader


def values_of(n=2, c=3, size_hw=(5, 4)) -> torch.Tensor:
    return torch.randn((n, c, *size_hw), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assembled(logits: CoarseLogits) -> torch.Tensor:
    result = torch.full(logits.shape, torch.nan, dtype=torch.float64)
    for image, tile in (reader := TileReader(logits)):
        place = result[image, :, tile.rows, tile.columns]
        assert place.isnan().all()  # no pixel twice
        place.copy_(reader.read(image, tile).view_as(place))
    return result


@pytest.mark.parametrize("numbers", [1, 50, 2**18])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size_hw", [(5, 4), (10, 8), (15, 12), (40, 32), (11, 9), (3, 3)])
def test_tiles_are_pieces_of_the_upsampled_logits(monkeypatch, size_hw, align_corners, numbers):
    """Also for sizes that are no multiple, and smaller ones."""
    monkeypatch.setattr(upsample, "_TILE_NUMBERS", numbers)
    monkeypatch.setattr(upsample, "_TILE_COLUMNS", 2)
    values = values_of()
    whole = F.interpolate(values, size_hw, mode="bilinear", align_corners=align_corners)
    assert torch.allclose(assembled(CoarseLogits(values, size_hw, None, align_corners)), whole, atol=1e-14)
    crop_hw = size_hw[0] - 1, size_hw[1] - 2
    cropped = CoarseLogits(values, size_hw, crop_hw, align_corners)
    assert torch.allclose(assembled(cropped), whole[..., : crop_hw[0], : crop_hw[1]], atol=1e-14)
    assert torch.equal(cropped.full(), whole[..., : crop_hw[0], : crop_hw[1]])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size_hw", "crop_hw"), [((5, 4), (5, 4)), ((5, 4), (3, 2)), ((15, 12), (14, 11))])
def test_gradients_of_tiles_add_up_to_autograds(monkeypatch, size_hw, crop_hw, align_corners):
    monkeypatch.setattr(upsample, "_TILE_NUMBERS", 40)
    values = values_of().requires_grad_()
    logits = CoarseLogits(values, size_hw, crop_hw, align_corners)
    of_pixels = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad((logits.full() * of_pixels).sum(), values)
    reader = TileReader(logits)
    gradient = reader.empty_gradient()
    for image, tile in reader:
        of_tile = of_pixels[image, :, tile.rows, tile.columns].flatten(1)
        reader.add_gradient(gradient, image, tile, reader.pull_back(tile, of_tile))
    assert torch.allclose(gradient, expected, atol=1e-13)


def test_one_coarse_value_covers_all():
    values = torch.tensor([[[[3.0]]]])
    for align_corners in (True, False):
        assert CoarseLogits(values, (2, 3), None, align_corners).full().flatten().tolist() == [3.0] * 6
        assert (assembled(CoarseLogits(values, (2, 3), None, align_corners)) == 3.0).all()


def test_plain_logits_are_read_without_a_copy():
    values = values_of()
    reader = TileReader(CoarseLogits.of(values))
    image, tile = next(iter(reader))
    assert reader.read(image, tile).data_ptr() == values.data_ptr()
