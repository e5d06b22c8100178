"""Laws that every loss obeys, for every format."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import admit, check_number
from segkit.losses.build import LOSSES
from segkit.losses.pixel import CrossEntropy, Focal
from segkit.losses.shape import ClDice
from segkit.ops.loss_tiles import TileLoss
from segkit.ops.lovasz import lovasz_weights

# Every loss as it is, and the ways of a pixel loss that need the terms of all choices.
LAWFUL = {
    **LOSSES,
    "hardest": partial(CrossEntropy, top_k=0.7),
    "hardest of each image": partial(Focal, gamma=0.5, top_k=0.7, hard_per="image"),
    "hard": partial(CrossEntropy, hard_below=0.99),
    "smoothed focal": partial(Focal, label_smoothing=0.1),
}
# The others are made of torch operations.
OWN_GRADIENT = ("cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz")
WILD = (math.inf, -math.inf, math.nan, 1e30)


@pytest.fixture(params=LAWFUL)
def make_loss(request):
    return LAWFUL[request.param]


def _loss_and_gradient(loss, logits, target):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_every_default_works(make_loss, format, make_pair):
    value, gradient = _loss_and_gradient(make_loss(format), *make_pair(format))
    assert value.shape == ()
    assert value > 0
    assert gradient.abs().sum() > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("wild", WILD)
def test_only_valid_pixels_move_the_loss(make_loss, format, make_pair, wild):
    loss, (logits, target) = make_loss(format), make_pair(format)
    value, gradient = _loss_and_gradient(loss, logits, target)
    wild_where_ignored, other_where_counted = logits.clone(), logits.clone()
    wild_where_ignored[0, :, 0] = wild
    # One channel only: adding to all of them is nothing to a softmax. The Lovász loss of a present class moves too.
    other_where_counted[1, -1] += 1.0

    wild_value, wild_gradient = _loss_and_gradient(loss, wild_where_ignored, target)
    assert torch.equal(wild_value, value)
    assert torch.equal(wild_gradient, gradient)
    assert (gradient[0, :, 0] == 0).all()
    assert loss(other_where_counted, target) != value


def test_all_ignored_costs_exactly_nothing(make_loss, format, make_pair):
    logits, target = make_pair(format)
    value, gradient = _loss_and_gradient(make_loss(format), logits, torch.full_like(target, format.ignore_index))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_a_plane_that_is_ignored_everywhere_has_no_gradient(make_loss, make_pair):
    format = MaskFormat.multilabel(["liver", "tumour", "vessel"])
    logits, target = make_pair(format)
    target[:, 1] = format.ignore_index
    value, gradient = _loss_and_gradient(make_loss(format), logits, target)
    assert value > 0
    assert (gradient[:, 1] == 0).all()
    assert (gradient[:, [0, 2]].flatten(2).abs().sum(-1) > 0).all()


def test_gradient_agrees_with_differences(make_loss, format, make_pair):
    logits, target = make_pair(format, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: make_loss(format)(x, target), logits.requires_grad_(), atol=1e-7, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make_loss, format, make_pair, dtype):
    logits, target = make_pair(format, dtype)
    value, gradient = _loss_and_gradient(make_loss(format), logits, target)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert value.item() == pytest.approx(make_loss(format)(logits.double(), target).item(), rel=1e-5)


def test_half_precision_survives_all_positive_images(make_loss):
    """SMP Dice gives NaN here: 4·512·512 ones do not fit into fp16, which ends at 65504."""
    format = MaskFormat.binary()
    logits = torch.full((4, 1, 512, 512), 3.0, dtype=torch.float16)
    value, gradient = _loss_and_gradient(make_loss(format), logits, torch.ones((4, 1, 512, 512), dtype=torch.uint8))
    assert value.isfinite()
    assert 0 <= value < 0.1  # probability 0.953 everywhere
    assert value > 0 or make_loss is ClDice  # what has no border has no centre line
    assert gradient.isfinite().all()


def test_no_loss_reads_values_back(make_loss, format, make_pair):
    # Tensors on `meta` have no values: whatever waits for the device on a GPU raises here.
    logits, target = (t.to("meta") for t in make_pair(format))
    loss = make_loss(format).to("meta")
    assert loss(logits, target).shape == ()
    # On `meta` the operators above say shapes alone; this is what they run.
    tile = TileLoss(format.choices, format.num_classes, 2.0, 0.0, None, overlap=True)
    z, planes = logits[0].flatten(1), target[0].flatten(1)
    sums = tile.forward(z, planes)
    assert tile.backward(z, planes, sums).shape == z.shape
    valid = planes[0] != format.ignore_index
    assert lovasz_weights(z[0], valid, valid).shape == z[0].shape


def test_order_of_pixels_and_memory_do_not_matter(make_loss, format, make_pair):
    loss, (logits, target) = make_loss(format).double(), make_pair(format, torch.float64)
    value = loss(logits, target)
    flipped = loss(logits.flip(0, 3), target.flip(0, 3))
    turned = loss(logits.mT.contiguous().mT, target.to(memory_format=torch.channels_last))
    assert flipped.item() == pytest.approx(value.item(), abs=1e-12)
    assert turned.item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("size", [(0, 5, 7), (2, 0, 7)])
def test_no_pixels_cost_nothing(make_loss, format, size):
    n, h, w = size
    logits = torch.zeros((n, format.num_classes, h, w))
    target = torch.zeros((n, format.num_planes, h, w), dtype=format.torch_dtype)
    assert make_loss(format)(logits, target) == 0


def test_ids_above_255(make_loss):
    format = MaskFormat.multiclass(range(300))
    target = torch.tensor([[280, 3], [65535, 280]], dtype=torch.int32).view(1, 1, 2, 2)
    right = torch.where(format.expand(target), 50.0, -50.0)
    smoothed = "label_smoothing" in getattr(make_loss, "keywords", {})  # costs something even where it is met
    assert smoothed or make_loss(format)(right, target) == pytest.approx(0, abs=1e-6)
    # 280 wrapped into uint8 is 24: were that the truth, this answer would be perfect.
    assert make_loss(format)(right.roll(24 - 280, 1), target) > 1e-3


@pytest.mark.gpu
def test_the_same_on_a_gpu_without_waiting(make_loss, format, make_pair):
    logits, target = make_pair(format)
    value, gradient = _loss_and_gradient(make_loss(format), logits, target)
    loss, logits, target = make_loss(format).cuda(), logits.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu_value, gpu_gradient = _loss_and_gradient(loss, logits, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert gpu_value.item() == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(gpu_gradient.cpu(), gradient, rtol=1e-4, atol=1e-6)


def test_logits_of_another_number_of_classes_are_refused(format):
    c = format.num_classes + 1
    with pytest.raises(ValueError, match=rf"logits are .* \(2, {c}, 5, 7\), expected .* {format.num_classes},"):
        admit(torch.zeros(2, c, 5, 7), torch.zeros((2, format.num_planes, 5, 7), dtype=torch.uint8), format)


def test_targets_of_another_size_or_without_planes_are_refused(format):
    logits = torch.zeros(2, format.num_classes, 5, 7)
    for shape in [(2, format.num_planes, 7, 5), (2, 5, 7), (1, format.num_planes, 5, 7)]:
        with pytest.raises(ValueError, match="target has shape"):
            admit(logits, torch.zeros(shape, dtype=torch.uint8), format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int8])
def test_targets_that_are_not_planes_are_refused(format, dtype):
    shape = (2, format.num_planes, 5, 7)
    with pytest.raises(ValueError, match=f"target is {dtype}"):
        admit(torch.zeros(2, format.num_classes, 5, 7), torch.zeros(shape, dtype=dtype), format)


def test_integers_as_logits_are_refused(format):
    shape = (2, format.num_planes, 5, 7)
    with pytest.raises(ValueError, match="expected floats"):
        admit(torch.zeros((2, format.num_classes, 5, 7), dtype=torch.int64), torch.zeros(shape), format)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, "0.5", True, None])
def test_numbers_out_of_range_are_refused(value):
    assert check_number("label_smoothing", 0, below=1.0) == 0.0
    with pytest.raises(ValueError, match=r"label_smoothing is .* at least 0 and below 1"):
        check_number("label_smoothing", value, below=1.0)


def test_a_value_that_no_class_has_is_named(make_loss, format, make_pair):
    logits, target = make_pair(format)
    target[1, 0, 2, 3] = 77
    with pytest.raises(ValueError, match=r"target holds \[77\], expected 0 to \d, and 255 where ignored"):
        make_loss(format)(logits, target)


@pytest.mark.parametrize("name", OWN_GRADIENT)
def test_a_second_derivative_is_refused(name, format, make_pair):
    logits, target = make_pair(format)
    logits.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(LOSSES[name](format)(logits, target), logits, create_graph=True)
