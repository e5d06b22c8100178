from __future__ import annotations

import math
import re

import pytest
import torch

from segkit.formats.class_places import parse_members
from segkit.formats.mask_format import MaskFormat
from segkit.losses.build import build_loss
from segkit.losses.shape import Boundary, ClDice
from segkit.ops.upsample import CoarseLogits

BINARY = MaskFormat.binary("vessel")
TWO = MaskFormat.binary("vessel", activation="softmax")
LOG3 = math.log(3.0)  # a logit of log 3 is a probability of 3/4


def _planes(rows, ignored=255):
    letters = {".": 0, "#": 1, "?": ignored}
    return torch.tensor([[letters[letter] for letter in row] for row in rows], dtype=torch.uint8)[None, None]


def _certain(format, target, level=60.0):
    return torch.where(format.expand(target), level, -level)


@pytest.mark.parametrize("format", [BINARY, TWO], ids=["sigmoid", "softmax"])
def test_boundary_by_hand(format):
    #          .    .    #    #    .        distance from the other side, less a half:
    #         3/2  1/2  1/2  1/2  1/2       7/2 in all
    # p       1/4  3/4  3/4  1/4  1/4
    z = torch.tensor([-LOG3, LOG3, LOG3, -LOG3, -LOG3]).view(1, 1, 1, 5)
    logits = z if format is BINARY else torch.cat([torch.zeros_like(z), z], 1)
    wrong = 3 / 2 * 1 / 4 + 1 / 2 * (3 / 4 + 1 / 4 + 3 / 4 + 1 / 4)
    assert Boundary(format)(logits, _planes(["..##."])).item() == pytest.approx(wrong / (7 / 2))
    # Where the last is not known, the second `#` is two pixels from anything known to be outside: 3/2.
    wrong = 3 / 2 * 1 / 4 + 1 / 2 * (3 / 4 + 1 / 4) + 3 / 2 * 3 / 4
    assert Boundary(format)(logits, _planes(["..##?"])).item() == pytest.approx(wrong / 4)


def test_a_mistake_costs_more_the_farther_it_lies():
    target = _planes(["#........"])
    right = _certain(BINARY, target)
    costs = []
    for x in range(1, 9):
        wrong = right.clone()
        wrong[..., x] = 60.0
        costs.append(Boundary(BINARY)(wrong, target).item())
    # (x - 1/2) / (1/2 + Σ (x - 1/2)); the first pixel is half a pixel inside
    assert costs == pytest.approx([(x - 0.5) / 32.5 for x in range(1, 9)])


def test_boundary_is_the_signed_sum_of_kervadec_up_to_a_constant_and_a_factor():
    """Σ φ·p with φ the signed distance, negative inside: their gradients are the same but for 1 / Σ|φ|."""
    target = _planes([".....", ".##..", ".####", "....."])
    phi = torch.tensor(  # by hand: distance from the nearest of the other side, less a half
        [
            [2**0.5, 1, 1, 2**0.5, 2],
            [1, -1, -1, 1, 1],
            [1, -1, -1, -1, -1],
            [2**0.5, 1, 1, 1, 1],
        ],
        dtype=torch.float64,
    )
    phi = phi - 0.5 * phi.sign()
    logits = torch.randn((1, 1, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    (expected,) = torch.autograd.grad((phi * logits.sigmoid()).sum() / phi.abs().sum(), logits)
    (gradient,) = torch.autograd.grad(Boundary(BINARY)(logits, target), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_a_map_without_a_boundary_counts_its_pixels_alike():
    logits = torch.tensor([[LOG3, -LOG3, -LOG3, -LOG3]]).view(1, 1, 2, 2).requires_grad_()
    for rows, expected in ((["..", ".."], 3 / 8), (["##", "##"], 5 / 8), (["?.", ".."], 1 / 4)):
        value = Boundary(BINARY)(logits, _planes(rows))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == pytest.approx(expected)
        assert (gradient != 0).sum() == 4 - "".join(rows).count("?")  # false positives of an absent class cost


def test_boundary_takes_each_image_by_itself():
    targets = torch.cat([_planes(["#...", "...."]), _planes(["....", "..##"])])
    logits = torch.randn((2, 1, 2, 4), generator=torch.Generator().manual_seed(1))
    alone = [Boundary(BINARY)(logits[n : n + 1], targets[n : n + 1]).item() for n in range(2)]
    assert Boundary(BINARY)(logits, targets).item() == pytest.approx(sum(alone) / 2)
    # An image in which nothing is known is no image.
    unknown = torch.cat([targets[:1], torch.full_like(targets[1:], 255)])
    assert Boundary(BINARY)(logits, unknown).item() == pytest.approx(alone[0])


@pytest.mark.parametrize("make", [Boundary, ClDice])
def test_the_truth_costs_nothing_and_its_opposite_much(make, format, make_pair):
    _, target = make_pair(format)
    right = _certain(format, target)
    assert make(format)(right, target).item() == pytest.approx(0, abs=1e-6)
    assert make(format)(-right, target).item() > 0.5


# MONAI 1.6.1, SoftclDiceLoss(iter_=k, smooth=1e-300) of one image and one channel.
@pytest.mark.parametrize(
    ("iterations", "monai"), [(1, 0.550777262938067), (2, 0.5539519899602849), (3, 0.5569995440036479)]
)
@pytest.mark.parametrize("format", [BINARY, TWO], ids=["sigmoid", "softmax"])
def test_cl_dice_is_that_of_monai(format, iterations, monai):
    target = torch.zeros((1, 1, 6, 9), dtype=torch.uint8)
    target[..., 2:4, 1:8] = 1
    target[..., 5] = 1
    probs = torch.tensor([[((7 * y + 3 * x) % 11 + 1) / 13 for x in range(9)] for y in range(6)], dtype=torch.float64)
    z = probs.logit().view(1, 1, 6, 9)
    logits = z if format is BINARY else torch.cat([torch.zeros_like(z), z], 1)
    assert ClDice(format, iterations=iterations)(logits, target).item() == pytest.approx(monai, abs=1e-12)


def test_cl_dice_by_hand():
    # A line of seven, of which the prediction has the first three, and a pixel of its own two rows below.
    target = _planes(["#######", ".......", "......."])
    pred = _planes(["###....", ".......", ".....#."])
    precision, sensitivity = (3 + 1) / (4 + 1), (3 + 1) / (7 + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    assert ClDice(BINARY)(_certain(BINARY, pred), target).item() == pytest.approx(expected)


def test_cl_dice_of_an_absent_class_costs_its_false_lines():
    target = _planes(["......", "......", "......"])
    pred = _planes(["......", ".####.", "......"])
    precision = 1 / (4 + 1)
    assert ClDice(BINARY)(_certain(BINARY, pred), target).item() == pytest.approx(1 - 2 * precision / (precision + 1))
    assert ClDice(BINARY)(_certain(BINARY, target), target).item() == pytest.approx(0)
    logits = _certain(BINARY, pred, 3.0).requires_grad_()
    (gradient,) = torch.autograd.grad(ClDice(BINARY)(logits, target), logits)
    assert (gradient[0, 0, 1, 1:5] > 0).all()


def test_a_gap_costs_cl_dice_as_much_in_a_thin_line_as_in_a_wide_one():
    dark = ["." * 30] * 3
    thin = _planes([*dark, *dark, "#" * 30, *dark, *dark])
    wide = _planes([*dark, *["#" * 30] * 7, *dark])
    costs = []
    for target in (thin, wide):
        broken = _certain(BINARY, target)
        broken[..., 14:16] = -60.0
        costs.append(ClDice(BINARY)(broken, target).item())
    # The middle line of 30 pixels loses two; what is left lies in the truth, though ends of the wide one are thinned.
    sensitivity = (28 + 1) / (30 + 1)
    assert costs == pytest.approx([1 - 2 * sensitivity / (1 + sensitivity)] * 2)


def test_classes_of_a_shape_loss():
    format = MaskFormat.multiclass(["background", "artery", "vein"])
    assert parse_members(None, format) == [1, 2]
    assert parse_members(["vein"], format) == [2]
    assert parse_members(["vein", "background"], format) == [0, 2]
    assert parse_members(None, MaskFormat.multilabel(["cup", "disc"])) == [0, 1]
    assert parse_members([7], MaskFormat.multiclass([5, 7])) == [1]


@pytest.mark.parametrize("make", [Boundary, ClDice])
def test_only_named_classes_are_judged(make):
    format = MaskFormat.multilabel(["artery", "vein", "nerve"])
    random = torch.Generator().manual_seed(5)
    logits = torch.randn((2, 3, 6, 8), generator=random).requires_grad_()
    target = torch.randint(0, 2, (2, 3, 6, 8), generator=random).to(torch.uint8)
    (gradient,) = torch.autograd.grad(make(format, classes=["vein"])(logits, target), logits)
    assert (gradient.flatten(2).abs().sum((0, 2)) > 0).tolist() == [False, True, False]
    alone = make(BINARY)(logits[:, 1:2], target[:, 1:2])
    assert make(format, classes=["vein"])(logits, target).item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["boundary", "cl_dice"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["vesel"]}, "classes names 'vesel', which is no class. Did you mean `vessel`?"),
        ({"classes": []}, "classes is empty"),
        ({"classes": "vessel"}, "classes is 'vessel': expected a list"),
        ({"classes": 1}, "classes is 1: expected a list"),
    ],
)
def test_strange_classes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_loss({name: options}, BINARY)


@pytest.mark.parametrize("iterations", [0, -1, 2.0, True, "3"])
def test_strange_iterations_are_refused(iterations):
    with pytest.raises(ValueError, match="expected a whole number, at least 1"):
        ClDice(BINARY, iterations=iterations)


@pytest.mark.parametrize("make", [Boundary, ClDice])
def test_half_precision_that_is_upsampled_is_upsampled_in_float32(make):
    values = torch.randn((2, 1, 3, 4), generator=torch.Generator().manual_seed(6), dtype=torch.float16)
    target = torch.randint(0, 2, (2, 1, 12, 16), generator=torch.Generator().manual_seed(7)).to(torch.uint8)
    half = make(BINARY)(CoarseLogits(values, (12, 16)), target)
    exact = make(BINARY)(CoarseLogits(values.double(), (12, 16)), target)
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
