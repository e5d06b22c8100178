from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from segkit.formats.mask_format import MaskFormat
from segkit.losses.class_weights import parse_class_weights
from segkit.losses.pixel import CrossEntropy, Focal

BINARY = MaskFormat.binary("cell")
EXCLUSIVE = MaskFormat.multiclass(["sky", "road", "tree"])
LOG3 = math.log(3.0)  # a logit of log 3 is a probability of 3/4


def _line(*values, dtype=torch.float32):
    """(1, 1, 1, W)."""
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


def _target(*values):
    return _line(*values, dtype=torch.uint8)


def test_cross_entropy_by_hand():
    # probability 3/4 twice: once right, once wrong, and a third pixel nobody knows
    loss = CrossEntropy(BINARY)(_line(LOG3, LOG3, -9.0), _target(1, 0, 255))
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2)


def test_weighted_cross_entropy_by_hand():
    # the cell weighs 5, its absence 1, and the sum is divided by 6, not by 2 pixels
    loss = CrossEntropy(BINARY, class_weights=[5])(_line(LOG3, LOG3, 9.0), _target(1, 0, 255))
    assert loss.item() == pytest.approx((-5 * math.log(3 / 4) - math.log(1 / 4)) / 6)


def test_sigmoid_and_two_class_softmax_agree(make_pair):
    logits, target = make_pair(BINARY)
    two_classes = MaskFormat.binary("cell", activation="softmax")
    two_logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    for make in (CrossEntropy, Focal):
        one = make(BINARY, class_weights=[4.0])(logits, target)
        two = make(two_classes, class_weights=[1.0, 4.0])(two_logits, target)
        assert one.item() == pytest.approx(two.item(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 7.0]])
def test_softmax_agrees_with_torch(make_pair, weights):
    logits, target = make_pair(EXCLUSIVE)
    expected = F.cross_entropy(
        logits, target[:, 0].long(), weight=None if weights is None else torch.tensor(weights), ignore_index=255
    )
    assert CrossEntropy(EXCLUSIVE, class_weights=weights)(logits, target).item() == pytest.approx(expected.item())


def test_label_smoothing_agrees_with_torch(make_pair):
    logits, target = make_pair(EXCLUSIVE)
    expected = F.cross_entropy(logits, target[:, 0].long(), ignore_index=255, label_smoothing=0.2)
    assert CrossEntropy(EXCLUSIVE, label_smoothing=0.2)(logits, target).item() == pytest.approx(expected.item())
    assert CrossEntropy(EXCLUSIVE)(logits, target).item() != pytest.approx(expected.item())


def test_overlapping_agrees_with_torch_on_valid_choices(make_pair):
    format = MaskFormat.multilabel(["liver", "tumour", "vessel"])
    logits, target = make_pair(format)
    target[1, 2, 1:3] = 255  # a plane that is known in part
    valid = target != 255
    expected = F.binary_cross_entropy_with_logits(logits[valid], target[valid].float())
    assert CrossEntropy(format)(logits, target).item() == pytest.approx(expected.item())


def test_cross_entropy_is_divided_by_valid_pixels():
    """SMP divides by all pixels: its loss shrinks with every pixel that nobody labelled."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, target = _line(LOG3, LOG3, 0.0, 0.0), _target(1, 0, 255, 255)
    expected = (-math.log(3 / 4) - math.log(1 / 4)) / 2
    peer = smp.losses.SoftBCEWithLogitsLoss(ignore_index=255)(logits, target.float())
    assert peer.item() == pytest.approx(expected / 2)
    assert CrossEntropy(BINARY)(logits, target).item() == pytest.approx(expected)


def test_focal_by_hand():
    # right with p = 3/4 is a miss of 1/4, wrong with p = 3/4 a miss of 3/4
    for gamma in (0.0, 0.5, 2.0, 3.0):
        loss = Focal(BINARY, gamma=gamma)(_line(LOG3, LOG3, 5.0), _target(1, 0, 255))
        expected = (-(0.25**gamma) * math.log(3 / 4) - 0.75**gamma * math.log(1 / 4)) / 2
        assert loss.item() == pytest.approx(expected)


def test_focal_without_gamma_is_cross_entropy(format, make_pair):
    logits, target = make_pair(format)
    weights = torch.arange(1.0, 1.0 + format.num_classes)
    expected = CrossEntropy(format, class_weights=weights)(logits, target)
    assert Focal(format, gamma=0, class_weights=weights)(logits, target).item() == pytest.approx(expected.item())


def test_focal_agrees_with_smp_on_binary_masks(make_pair):
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, target = make_pair(BINARY)
    target = target.clamp(max=1)  # no ignored pixels: the peer divides by all of them
    expected = smp.losses.FocalLoss("binary", gamma=2.0)(logits, target.float())
    assert Focal(BINARY)(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("size", [20.0, 200.0])
def test_focal_gradient_is_finite_for_certain_pixels(gamma, size):
    # 1 - p is exactly 0 here, where the slope of x^0.3 is infinite.
    logits = torch.tensor([size, -size, size, -size]).view(1, 1, 2, 2).requires_grad_()
    loss = Focal(BINARY, gamma=gamma)(logits, torch.tensor([1, 0, 0, 1], dtype=torch.uint8).view(1, 1, 2, 2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(size / 2, rel=1e-4)
    assert gradient.flatten().tolist() == pytest.approx([0, 0, 0.25, -0.25], abs=1e-5)


def test_class_weights_by_name_or_in_order():
    assert parse_class_weights(None, EXCLUSIVE) is None
    assert parse_class_weights([1, 2.5, 0], EXCLUSIVE).tolist() == [1.0, 2.5, 0.0]
    assert parse_class_weights({"tree": 0.25}, EXCLUSIVE).tolist() == [1.0, 1.0, 0.25]
    numbered = MaskFormat.multiclass([7, 11])
    assert parse_class_weights({11: 3}, numbered).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"raod": 2}, "'raod', which is no class. Did you mean `road`?"),
        ([1, 2], "2 class_weights for 3 classes"),
        ([1, 2, -1], "class_weights of tree is -1"),
        ([1, 2, math.inf], "class_weights of tree is inf"),
        ([1, True, 1], "class_weights of road is True"),
        ([0, 0, 0], "all class_weights are 0"),
        ("balance", "class_weights is 'balance'"),
        ("balanced", "nothing says of which data"),
        (2.0, "class_weights is 2.0"),
    ],
)
@pytest.mark.parametrize("make", [CrossEntropy, Focal])
def test_strange_class_weights_are_refused(make, weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(EXCLUSIVE, class_weights=weights)


def test_a_class_of_weight_zero_is_not_trained(make_pair):
    logits, target = make_pair(EXCLUSIVE)
    loss = CrossEntropy(EXCLUSIVE, class_weights={"tree": 0})
    without_trees = torch.where(target == 2, 255, target)
    assert loss(logits, target).item() == pytest.approx(CrossEntropy(EXCLUSIVE)(logits, without_trees).item())
    assert loss(logits, torch.full_like(target, 2)) == 0


def test_class_weights_follow_the_device_but_are_not_saved():
    loss = CrossEntropy(EXCLUSIVE, class_weights=[1, 2, 3])
    assert loss.to("meta").class_weights.device.type == "meta"
    assert CrossEntropy(EXCLUSIVE, class_weights=[1, 2, 3]).state_dict() == {}


# The truth is "cell" everywhere, with these probabilities of it: losses log 4, log 4/3, log 10, log 2.
HALVES = (-LOG3, LOG3, -math.log(9.0), 0.0)


@pytest.mark.parametrize(
    ("options", "hard"),
    [
        ({"top_k": 0.5}, (10, 4)),
        ({"top_k": 0.51}, (10, 4, 2)),
        ({"top_k": 1}, (10, 4, 2, 4 / 3)),
        ({"hard_below": 0.3}, (10, 4)),
        ({"hard_below": 0.2}, (10,)),
        ({"hard_below": 0.2, "top_k": 0.5}, (10, 4)),  # at least two
        ({"hard_below": 0.6, "top_k": 0.25}, (10, 4, 2)),  # no more than one needed, but three are hard
    ],
)
def test_hard_pixels_by_hand(options, hard):
    expected = sum(map(math.log, hard)) / len(hard)
    logits, target = _line(*HALVES), _target(1, 1, 1, 1)
    assert CrossEntropy(BINARY, **options)(logits, target).item() == pytest.approx(expected)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    same = MaskFormat.binary("cell", activation="softmax")
    assert CrossEntropy(same, **options)(two, target).item() == pytest.approx(expected)


def test_no_hard_pixel_costs_nothing():
    logits = _line(*HALVES).requires_grad_()
    value = CrossEntropy(BINARY, hard_below=0.05)(logits, _target(1, 1, 1, 1))
    assert value == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


def test_ignored_pixels_are_neither_hard_nor_counted():
    # Half of the two that are left is one: log 4, and not the log 10 under the ignored pixel.
    target = _target(1, 1, 255, 255)
    assert CrossEntropy(BINARY, top_k=0.5)(_line(*HALVES), target).item() == pytest.approx(math.log(4))
    assert CrossEntropy(BINARY, hard_below=0.3)(_line(*HALVES), target).item() == pytest.approx(math.log(4))


def test_classes_of_weight_zero_are_never_hard():
    # Two of three truths weigh 0; of the one choice that is left, all is taken.
    logits, target = 0.1 * torch.arange(9.0).view(1, 3, 1, 3), _target(0, 1, 2)
    loss = CrossEntropy(EXCLUSIVE, class_weights={"sky": 0, "road": 0, "tree": 5}, top_k=0.1)
    expected = F.cross_entropy(logits[..., 2], torch.tensor([[2]]))
    assert loss(logits, target).item() == pytest.approx(expected.item())


def test_hard_pixels_keep_their_weights():
    # The hard two are a cell of weight 3 (log 10), and an "other" of weight 1 (log 4).
    logits, target = _line(LOG3, LOG3, -math.log(9.0), 0.0), _target(0, 1, 1, 1)
    loss = CrossEntropy(BINARY, class_weights=[3], top_k=0.5)
    assert loss(logits, target).item() == pytest.approx((math.log(4) + 3 * math.log(10)) / 4)


def test_among_equals_the_first_pixels_are_hard():
    logits = torch.zeros((2, 1, 3, 4), requires_grad=True)
    loss = CrossEntropy(BINARY, top_k=0.25)(logits, torch.ones((2, 1, 3, 4), dtype=torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_hard_pixels_of_a_batch_or_of_each_image():
    logits = torch.cat([_line(-9.0, -8.0), _line(LOG3, 0.0)])
    target = torch.ones((2, 1, 1, 2), dtype=torch.uint8)
    of_batch = CrossEntropy(BINARY, top_k=0.5)(logits, target)
    of_images = CrossEntropy(BINARY, top_k=0.5, hard_per="image")(logits, target)
    costs = {z: math.log1p(math.exp(-z)) for z in (-9.0, -8.0, 0.0)}
    assert of_batch.item() == pytest.approx((costs[-9.0] + costs[-8.0]) / 2)
    assert of_images.item() == pytest.approx((costs[-9.0] + costs[0.0]) / 2)


def test_all_of_them_are_the_plain_loss(format, make_pair):
    logits, target = make_pair(format, torch.float64)
    for make in (CrossEntropy, Focal):
        for options in ({}, {"class_weights": [0.5] * format.num_classes}):
            plain, all_hard = make(format, **options), make(format, **options, top_k=1.0)
            assert not all_hard.sums_all
            assert all_hard(logits, target).item() == pytest.approx(plain(logits, target).item(), abs=1e-12)


def test_smoothing_does_not_change_what_is_hard():
    # By the smoothed likelihood a sure and right pixel would be the worst.
    loss = CrossEntropy(BINARY, label_smoothing=0.5, top_k=0.5)
    logits = _line(30.0, -1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, _target(1, 1)), logits)
    assert (gradient.flatten() != 0).tolist() == [False, True]


def test_smoothed_focal_loss_by_hand():
    # softmax of (log 3, 0, 0) is (3/5, 1/5, 1/5); a tenth of the truth is spread over the three.
    logits = torch.tensor([LOG3, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    log_p = 0.9 * math.log(3 / 5) + 0.1 * (math.log(3 / 5) + 2 * math.log(1 / 5)) / 3
    expected = (1 - math.exp(log_p)) ** 2 * -log_p
    loss = Focal(EXCLUSIVE, label_smoothing=0.1)
    assert loss(logits, torch.zeros((1, 1, 1, 1), dtype=torch.uint8)).item() == pytest.approx(expected, abs=1e-12)
    without_focus = Focal(EXCLUSIVE, gamma=0, label_smoothing=0.1)
    expected = F.cross_entropy(logits[..., 0], torch.tensor([[0]]), label_smoothing=0.1)
    target = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    assert without_focus(logits, target).item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_loss_that_is_no_number_is_seen():
    logits = _line(3.0, math.nan, 2.0, 1.0)
    for options in ({"top_k": 0.25}, {"hard_below": 0.5}):
        assert CrossEntropy(BINARY, **options)(logits, _target(1, 1, 1, 1)).isnan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0: expected a number above 0 and at most 1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": "a"}, "top_k is 'a'"),
        ({"top_k": True}, "top_k is True"),
        ({"hard_below": -1}, "hard_below is -1"),
        ({"hard_below": math.nan}, "hard_below is nan"),
        ({"top_k": 0.5, "hard_per": "pixel"}, "hard_per is 'pixel': expected batch or image"),
        ({"hard_per": "image"}, "there is no `top_k`"),
        ({"hard_per": "image", "hard_below": 0.5}, "there is no `top_k`"),
    ],
)
@pytest.mark.parametrize("make", [CrossEntropy, Focal])
def test_strange_hard_pixels_are_refused(make, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(EXCLUSIVE, **options)
