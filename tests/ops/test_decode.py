from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segkit.ops import upsample
from segkit.ops.decode import decode_above, decode_indices
from segkit.ops.upsample import CoarseLogits


def random_logits(classes: int = 5, size_hw=(6, 9), dtype=torch.float32) -> torch.Tensor:
    return torch.randn((2, classes, *size_hw), generator=torch.Generator().manual_seed(classes)).to(dtype)


def test_indices_by_hand_ties_take_the_first():
    logits = torch.tensor([[1.0, 3.0, 2.0], [2.0, 3.0, 2.0], [1.0, 0.0, 2.5]]).view(1, 3, 1, 3)
    decoded = decode_indices(CoarseLogits.of(logits), torch.uint8)
    assert decoded.tolist() == [[[[1, 0, 2]]]]
    assert decoded.dtype == torch.uint8
    # the highest logits are 2, 3 and 2.5
    assert decode_indices(CoarseLogits.of(logits), torch.uint8, 2.5, 255).tolist() == [[[[255, 0, 255]]]]


@pytest.mark.parametrize("classes", [1, 5, 300])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_indices_agree_with_argmax(classes, memory_format, dtype):
    # Few different values, so that ties are many.
    logits = random_logits(classes, dtype=dtype).mul(2).round().to(memory_format=memory_format)
    decoded = decode_indices(CoarseLogits.of(logits), torch.int32)
    assert torch.equal(decoded.long(), logits.max(1, keepdim=True).indices)


def test_nan_counts_as_highest_as_torch_has_it():
    logits = random_logits()
    logits[0, 2, 1, 3], logits[0, 4, 1, 3], logits[1, 1, 0, 0] = math.nan, math.nan, math.inf
    decoded = decode_indices(CoarseLogits.of(logits), torch.uint8)
    assert torch.equal(decoded.long(), logits.max(1, keepdim=True).indices)
    assert decoded[0, 0, 1, 3] == 2


@pytest.mark.parametrize("numbers", [1, 100, 2**18])
@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampled_logits_are_decoded_without_being_built(monkeypatch, align_corners, numbers):
    monkeypatch.setattr(upsample, "_TILE_NUMBERS", numbers)
    monkeypatch.setattr(upsample, "_TILE_COLUMNS", 8)
    values = random_logits(dtype=torch.float64)
    full = F.interpolate(values, (24, 36), mode="bilinear", align_corners=align_corners)[..., :23, :31]
    coarse = CoarseLogits(values, (24, 36), (23, 31), align_corners)
    assert torch.equal(decode_indices(coarse, torch.uint8).long(), full.max(1, keepdim=True).indices)
    limits = [0.0, 0.5, -0.5, 1.0, 0.25]
    above = full > torch.tensor(limits, dtype=torch.float64).view(1, -1, 1, 1)
    assert torch.equal(decode_above(coarse, limits, torch.uint8).bool(), above)


def test_a_threshold_is_compared_with_all_digits():
    # 0.1 in bfloat16 is 0.10009765625, above 0.1.
    logits = torch.full((1, 1, 1, 2), 0.1, dtype=torch.bfloat16)
    assert decode_above(CoarseLogits.of(logits), [0.1], torch.uint8).flatten().tolist() == [1, 1]
    assert decode_above(CoarseLogits.of(logits), [0.1001], torch.uint8).flatten().tolist() == [0, 0]
    assert decode_indices(CoarseLogits.of(logits), torch.uint8, 0.1, 255).flatten().tolist() == [0, 0]
    assert decode_indices(CoarseLogits.of(logits), torch.uint8, 0.1001, 255).flatten().tolist() == [255, 255]


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_reaches_the_pixels_it_is_a_part_of(wild):
    values = random_logits(dtype=torch.float64)
    values[0, 2, 1, 3] = wild
    coarse = CoarseLogits(values, (24, 36), None, False)
    full = F.interpolate(values, (24, 36), mode="bilinear", align_corners=False)
    decoded = decode_indices(coarse, torch.uint8).long()
    clear = full.isfinite().all(1, keepdim=True)
    assert 0 < (~clear).sum() < 100
    assert torch.equal(decoded[clear], full.max(1, keepdim=True).indices[clear])
    # F.interpolate also says NaN where the value has no weight at all.
    assert (decoded[full[:, 2:3].isposinf()] == 2).all()
