from __future__ import annotations

import pytest
import torch

from segkit.ops.overlap import overlap_sums


def test_sums_by_hand():
    # two images, two classes, one line of three pixels
    probs = torch.tensor([[[0.5, 0.25, 1.0], [0.0, 0.5, 0.5]], [[0.75, 0.0, 0.0], [1.0, 1.0, 1.0]]]).unsqueeze(2)
    truth = torch.tensor([[[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 1, 1]]]).bool().unsqueeze(2)
    valid = torch.tensor([[[1, 1, 1]], [[1, 0, 1]]]).bool().unsqueeze(2)  # the middle pixel of image 1 is not known
    sums = overlap_sums(probs, truth, valid)
    assert sums.both.tolist() == [0.5 + 0.25, 0.5 + 2.0]
    assert sums.probs.tolist() == [0.5 + 0.25 + 1.0 + 0.75, 1.0 + 2.0]
    assert sums.truth.tolist() == [2.0, 1.0 + 2.0]


def test_classes_may_be_valid_in_different_places():
    probs, truth = torch.full((1, 2, 1, 3), 0.5), torch.ones((1, 2, 1, 3), dtype=torch.bool)
    valid = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool().view(1, 2, 1, 3)
    sums = overlap_sums(probs, truth, valid)
    assert [s.tolist() for s in sums] == [[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_ignored_pixels_may_hold_anything(wild):
    probs = torch.tensor([0.25, wild]).view(1, 1, 1, 2).requires_grad_()
    truth, valid = torch.tensor([True, True]).view(1, 1, 1, 2), torch.tensor([True, False]).view(1, 1, 1, 2)
    sums = overlap_sums(probs, truth, valid)
    assert [s.item() for s in sums] == [0.25, 0.25, 1.0]
    (gradient,) = torch.autograd.grad(sums.both.sum() + sums.probs.sum(), probs)
    assert gradient.flatten().tolist() == [2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    ones = torch.ones((1, 1, 300, 400), dtype=dtype)
    sums = overlap_sums(ones, ones.bool(), ones.bool())
    assert [s.tolist() for s in sums] == [[120000.0]] * 3
    assert sums.both.dtype == sums.truth.dtype == torch.float32


def test_double_stays_double_and_gradients_agree_with_differences():
    random = torch.Generator().manual_seed(0)
    probs = torch.rand((2, 3, 4, 5), generator=random, dtype=torch.float64).mT.requires_grad_()  # not contiguous
    truth = torch.rand((2, 3, 5, 4), generator=random) < 0.4
    valid = torch.rand((2, 1, 5, 4), generator=random) < 0.8
    assert torch.autograd.gradcheck(lambda p: overlap_sums(p, truth, valid)[:2], probs)


def test_autocast_does_not_halve_the_sums():
    ones = torch.ones((1, 1, 300, 401))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert overlap_sums(ones, ones.bool(), ones.bool()).both.item() == 300 * 401  # bf16 would say 120320
