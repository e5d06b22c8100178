"""The fused Lovász loss against the same written with whole tensors."""

from __future__ import annotations

import math

import pytest
import torch

from segkit.ops import upsample
from segkit.ops.lovasz import lovasz_loss, lovasz_weights
from segkit.ops.upsample import CoarseLogits
from tests.ops.test_loss_sums import KINDS, make_pair


def whole_tensor_loss(logits: CoarseLogits, target, choices) -> torch.Tensor:
    """Sorting by torch, the extension from its definition: differences of the Jaccard loss of growing sets."""
    height, width = target.shape[-2:]
    z = logits.full()[..., :height, :width]
    classes = z.shape[1]
    valid = (target != choices.ignore_index).expand_as(z) if choices.index_planes else target != choices.ignore_index
    truth = target == (torch.arange(classes).view(1, -1, 1, 1) if choices.index_planes else 1)
    z = torch.where(valid, z, 0.0)
    probs = z.softmax(1) if choices.softmax else z.sigmoid()
    errors = torch.where(truth, 1 - probs, probs)
    total = z.new_zeros(())
    for c in range(classes):
        keep = valid[:, c]
        e, t = errors[:, c][keep], truth[:, c][keep]
        e, order = e.sort(descending=True, stable=True)
        t = t[order]
        previous, misses, false = 0.0, 0, 0
        for error, is_true in zip(e, t, strict=True):
            misses, false = misses + int(is_true), false + int(not is_true)
            jaccard = 1 - (int(t.sum()) - misses) / (int(t.sum()) + false)
            total = total + (jaccard - previous) * error
            previous = jaccard
    return total / classes


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("factor", "crop"), [(1, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_agrees_with_whole_tensors(choices, factor, crop, align_corners):
    values, full, target = make_pair(choices, 3, (4, 3), factor=factor, crop=crop)
    logits = CoarseLogits(values, full, (target.shape[-2], target.shape[-1]), align_corners)
    ours, theirs = (way(logits, target, choices) for way in (lovasz_loss, whole_tensor_loss))
    assert (ours - theirs).abs() < 1e-12
    ours, theirs = (torch.autograd.grad(2.0 * loss, values)[0] for loss in (ours, theirs))
    assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_the_size_of_tiles_changes_nothing(monkeypatch, choices):
    values, full, target = make_pair(choices, 3, factor=4, crop=3)
    logits = CoarseLogits(values, full)
    (whole,) = torch.autograd.grad(lovasz_loss(logits, target, choices), values)
    monkeypatch.setattr(upsample, "_TILE_NUMBERS", 8)
    (tiled,) = torch.autograd.grad(lovasz_loss(logits, target, choices), values)
    assert (whole - tiled).abs().max() < 1e-14


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_ignored_logits_may_be_anything(choices, factor, wild):
    values, full, target = make_pair(choices, 3, factor=factor)
    target[0, :, : 3 * factor] = 255  # all that line 1 is a part of
    expected = lovasz_loss(CoarseLogits(values.detach().clone(), full), target, choices)
    with torch.no_grad():
        values[0, :2, 1] = wild
    loss = lovasz_loss(CoarseLogits(values, full), target, choices)
    (gradient,) = torch.autograd.grad(loss, values)
    assert torch.equal(loss, expected)
    assert gradient.isfinite().all()
    assert (gradient[0, :, 1] == 0).all()


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_the_scale_of_a_float16_run_keeps_small_gradients(choices):
    """1 / pixels is less than float16 holds, and the scale more: only their product is to be rounded."""
    values, full, target = make_pair(choices, 2, (64, 96))
    (expected,) = torch.autograd.grad(lovasz_loss(CoarseLogits(values, full), target, choices), values)
    half = values.detach().half().requires_grad_()
    (scaled,) = torch.autograd.grad(lovasz_loss(CoarseLogits(half, full), target, choices) * 2.0**16, half)
    assert scaled.dtype == torch.float16
    assert torch.allclose(scaled.double() / 2**16, expected, rtol=0.02, atol=1e-6)


def test_the_gradient_is_made_only_where_it_is_wanted():
    values, full, target = make_pair(KINDS["softmax"], 3)
    with torch.no_grad():
        assert not lovasz_loss(CoarseLogits(values, full), target, KINDS["softmax"]).requires_grad
    assert lovasz_loss(CoarseLogits(values, full), target, KINDS["softmax"]).requires_grad


def test_compiling_breaks_no_graph():
    values, full, target = make_pair(KINDS["softmax"], 3, factor=2)

    def loss(values):
        return lovasz_loss(CoarseLogits(2.0 * values, full), target, KINDS["softmax"])

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert torch.equal(*(torch.autograd.grad(f(values), values)[0] for f in (loss, compiled)))


def test_lovasz_weights_leave_ignored_pixels_out_whatever_they_hold():
    errors = torch.tensor([0.75, 0.5, 0.25]).view(1, 1, 3)
    truth, valid = torch.tensor([False, True, True]).view(1, 1, 3), torch.ones((1, 1, 3), dtype=torch.bool)
    # wrong so far: one false positive, 1 - 2/3; then a miss, 1 - 1/3; then both, 1 - 0/3
    expected = [1 / 3, 1 / 3, 1 / 3]
    assert lovasz_weights(errors, truth, valid).flatten().tolist() == pytest.approx(expected)
    for wild in (1.0, float("nan")):
        for wild_truth in (True, False):
            more_errors = torch.cat([torch.full((1, 1, 2), wild), errors], dim=2)
            more_truth = torch.cat([torch.full((1, 1, 2), wild_truth), truth], dim=2)
            more_valid = torch.cat([torch.zeros((1, 1, 2), dtype=torch.bool), valid], dim=2)
            weights = lovasz_weights(more_errors, more_truth, more_valid)
            assert weights.flatten().tolist() == pytest.approx([0, 0, *expected])
