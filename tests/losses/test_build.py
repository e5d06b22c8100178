from __future__ import annotations

import re

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.losses.build import LOSSES, build_loss
from segkit.losses.pixel import CrossEntropy, Focal
from segkit.losses.region import Dice

EXCLUSIVE = MaskFormat.multiclass(["sky", "road", "tree"])


def test_the_losses():
    names = ["cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz", "boundary", "cl_dice"]
    assert list(LOSSES) == names


@pytest.mark.parametrize("name", LOSSES)
def test_a_name_is_that_loss(name, format, make_pair):
    logits, target = make_pair(format)
    assert torch.equal(build_loss(name, format)(logits, target), LOSSES[name](format)(logits, target))


def test_a_mixture_is_the_weighted_sum(format, make_pair):
    logits, target = make_pair(format)
    loss = build_loss({"cross_entropy": 0.25, "dice": 3}, format)
    terms = loss.terms(logits, target)
    assert list(terms) == ["cross_entropy", "dice"]
    # terms are shown as they are, without the weight
    assert torch.equal(terms["cross_entropy"], CrossEntropy(format)(logits, target))
    assert torch.equal(terms["dice"], Dice(format)(logits, target))
    assert loss(logits, target).item() == pytest.approx(0.25 * terms["cross_entropy"].item() + 3 * terms["dice"].item())
    assert torch.equal(loss.combine(terms), loss(logits, target))


def test_options_reach_the_loss(make_pair):
    logits, target = make_pair(EXCLUSIVE)
    options = {"gamma": 0.5, "class_weights": {"tree": 9}}
    loss = build_loss({"focal": {"weight": 2, **options}, "dice": {}}, EXCLUSIVE)
    assert loss.weights == {"focal": 2.0, "dice": 1.0}
    assert torch.equal(loss.terms(logits, target)["focal"], Focal(EXCLUSIVE, **options)(logits, target))
    assert not torch.equal(loss.terms(logits, target)["focal"], Focal(EXCLUSIVE)(logits, target))


def test_the_spec_is_left_as_it_was():
    spec = {"focal": {"weight": 2, "gamma": 1}}
    build_loss(spec, EXCLUSIVE)
    assert spec == {"focal": {"weight": 2, "gamma": 1}}


def test_a_mixture_keeps_ignored_pixels_out(format, make_pair):
    logits, target = make_pair(format)
    logits[0, :, 0] = float("nan")
    logits.requires_grad_()
    loss = build_loss(dict.fromkeys(LOSSES, 1), format)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[0, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross_entropi", "loss 'cross_entropi' is not known. Did you mean `cross_entropy`?"),
        (
            {"dice": 1, "hausdorff": 1},
            "Known are cross_entropy, focal, dice, jaccard, tversky, lovasz, boundary, cl_dice.",
        ),
        ({"focal": {"gama": 2}}, "loss focal has no option 'gama'. Did you mean `gamma`?"),
        # What mmseg's shipped configs do: the activation comes from the format and nowhere else.
        ({"dice": {"activation": "sigmoid"}}, "loss dice has no option 'activation'"),
        ({"dice": 0}, "loss dice has weight 0: expected a finite number above 0"),
        ({"dice": -1}, "weight -1"),
        ({"dice": float("inf")}, "weight inf"),
        ({"dice": float("nan")}, "weight nan"),
        ({"dice": True}, "weight True"),
        ({"dice": "1"}, "weight '1'"),
        ({"dice": None}, "weight None"),
        ({"dice": {"weight": 0}}, "weight 0"),
        ({}, "expected a name or names with weights"),
        (["dice"], "expected a name or names with weights"),
        (None, "expected a name or names with weights"),
    ],
)
def test_strange_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_loss(spec, EXCLUSIVE)
