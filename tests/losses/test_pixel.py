from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from segkit.formats.mask_format import MaskFormat
from segkit.losses.pixel import CrossEntropy, Focal, parse_class_weights

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
        ("balanced", "class_weights is 'balanced'"),
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
