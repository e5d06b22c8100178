import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segkit.formats.classes import MaskClass
from segkit.formats.mask_format import ExclusiveMask, MaskFormat, OneVsRestMask, OverlappingMasks

SOFTMAX = MaskFormat.multiclass(["sky", "road", "car"])
SIGMOID = MaskFormat.multiclass(["sky", "road", "car"], activation="sigmoid")
OVERLAP = MaskFormat.multilabel(["WT", "TC", "ET"], thresholds=[0.5, 0.3, 0.8])
BINARY = MaskFormat.binary("vessel")
TWO = MaskFormat.binary("vessel", activation="softmax")
MANY = MaskFormat.multiclass(range(300))
ALL = [SOFTMAX, SIGMOID, OVERLAP, BINARY, TWO, MANY]
IGNORED = 255


def one_pixel(*values, dtype=torch.float64):
    """(1, C, 1, 1) from the values of a pixel."""
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)


def random_target(format, seed=0, size=(2, 3, 5)):
    """(N, P, H, W) planes with every kind of value, about a fifth ignored."""
    rng = np.random.default_rng(seed)
    n, h, w = size
    top = 2 if format.classes_overlap else format.num_classes
    planes = rng.integers(0, top, (n, format.num_planes, h, w))
    planes[rng.random(planes.shape) < 0.2] = format.ignore_index
    return torch.from_numpy(planes).to(format.torch_dtype)


def random_logits(format, seed=1, size=(2, 3, 5), dtype=torch.float64):
    n, h, w = size
    return torch.randn(n, format.num_classes, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_kinds_and_their_planes():
    assert [type(f) for f in ALL] == [
        ExclusiveMask,
        OneVsRestMask,
        OverlappingMasks,
        OverlappingMasks,
        ExclusiveMask,
        ExclusiveMask,
    ]
    assert [(f.num_planes, f.num_classes) for f in ALL] == [(1, 3), (1, 3), (3, 3), (1, 1), (1, 2), (1, 300)]
    assert [f.classes_overlap for f in ALL] == [False, False, True, True, False, False]
    assert TWO.names == ("background", "vessel")


def test_planes_are_uint8_up_to_255_classes_and_uint16_above():
    small, large = MaskFormat.multiclass(range(255)), MaskFormat.multiclass(range(256))
    assert (small.dtype, small.ignore_index, small.torch_dtype) == (np.uint8, 255, torch.uint8)
    assert (large.dtype, large.ignore_index, large.torch_dtype) == (np.uint16, 65535, torch.int32)
    # 0/1 planes stay uint8, however many classes there are.
    assert MaskFormat.multilabel(range(300)).dtype == np.uint8


def test_softmax_over_overlapping_classes_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"'WT', 'TC'.*sum to 1.*one class per pixel.*sigmoid.*multiclass"):
        MaskFormat.multilabel(["WT", "TC"], activation="softmax")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MaskFormat.binary(activation="relu"), "expected softmax or sigmoid"),
        (lambda: MaskFormat.multilabel(["a", "b"], thresholds=[0.5]), "1 thresholds for 2 classes"),
        (lambda: MaskFormat.multilabel(["a"], thresholds=1.0), "between 0 and 1"),
        (lambda: MaskFormat.multiclass(["a", "b"], "sigmoid", threshold=0.0), "between 0 and 1"),
        (lambda: MaskFormat.multiclass(["a", "b"], threshold=0.5), "softmax takes the best class"),
        (lambda: MaskFormat.from_dict({"format": "panoptic", "classes": ["a"]}), "binary, multilabel or multiclass"),
        (lambda: MaskFormat.from_dict({"format": "multiclass"}), "classes is missing"),
        (lambda: MaskFormat.from_dict({"format": "binary", "classes": ["a", "b"]}), "name the one class"),
        (lambda: MaskFormat.from_dict({"format": "multilabel", "classes": ["a"], "threshold": 0.4}), "'threshold'"),
        (lambda: MaskFormat.from_dict({"format": "multiclass", "classes": ["a"], "colour": 1}), "'colour'"),
        (
            lambda: MaskFormat.from_dict(
                {"format": "binary", "classes": ["a"], "activation": "softmax", "thresholds": [0.4]}
            ),
            "softmax takes the best class",
        ),
        (lambda: MaskFormat.multiclass(range(65536)).dtype, "at most 65535"),
    ],
)
def test_formats_that_cannot_be_meant_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()


@pytest.mark.parametrize(
    "format",
    [
        *ALL,
        MaskFormat.multiclass([MaskClass("a", (1, 2, 3)), "b"], "sigmoid", threshold=0.25),
        MaskFormat.binary("vessel", threshold=0.3),
    ],
)
def test_from_dict_reads_to_dict_back(format):
    assert MaskFormat.from_dict(json.loads(json.dumps(format.to_dict()))) == format


def test_from_dict_takes_what_a_config_says():
    assert MaskFormat.from_dict({"format": "binary", "classes": ["vessel"]}) == BINARY
    assert MaskFormat.from_dict({"format": "binary", "classes": ["vessel"], "activation": "softmax"}) == TWO
    named = MaskFormat.from_dict({"format": "binary", "classes": ["background", "vessel"]})
    assert (type(named), named.names) == (OverlappingMasks, ("vessel",))
    assert MaskFormat.from_dict({"format": "multilabel", "classes": ["a", "b"], "thresholds": 0.3}) == (
        MaskFormat.multilabel(["a", "b"], thresholds=[0.3, 0.3])
    )


def test_probabilities_by_hand():
    logits = one_pixel(0.0, math.log(2), math.log(5))
    # softmax: 1, 2, 5 of 8; sigmoid: 1/2, 2/3, 5/6, whose sum is 2 and means nothing.
    assert SOFTMAX.probabilities(logits).flatten().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert SIGMOID.probabilities(logits).flatten().tolist() == pytest.approx([1 / 2, 2 / 3, 5 / 6])
    assert OVERLAP.probabilities(logits).flatten().tolist() == pytest.approx([1 / 2, 2 / 3, 5 / 6])


def test_expand_and_valid_by_hand():
    target = torch.tensor([[[[2, 0, IGNORED]]]], dtype=torch.uint8)
    assert SOFTMAX.expand(target)[0, :, 0].tolist() == [
        [False, True, False],
        [False, False, False],
        [True, False, False],
    ]
    assert SOFTMAX.valid(target).flatten().tolist() == [True, True, False]
    planes = torch.tensor([[[[1]], [[0]], [[IGNORED]]]], dtype=torch.uint8)
    assert OVERLAP.expand(planes).flatten().tolist() == [True, False, False]
    assert OVERLAP.valid(planes).flatten().tolist() == [True, True, False]
    wide = torch.tensor([[[[299, 65535]]]], dtype=torch.int32)
    assert MANY.expand(wide)[0, :, 0].nonzero().tolist() == [[299, 0]]
    assert MANY.valid(wide).flatten().tolist() == [True, False]


def test_decode_by_hand():
    logits = one_pixel(-1.0, 0.5, -0.5)
    assert SOFTMAX.decode(logits).flatten().tolist() == [1]
    assert SIGMOID.decode(logits).flatten().tolist() == [1]
    # sigmoid: 0.27, 0.62, 0.38 against thresholds 0.5, 0.3, 0.8.
    assert OVERLAP.decode(logits).flatten().tolist() == [0, 1, 0]
    # 0.38 lies above 0.3 and below 0.5.
    lower = MaskFormat.multilabel(["a", "b", "c"], thresholds=0.3)
    assert lower.decode(logits).flatten().tolist() == [0, 1, 1]
    for format in ALL:
        decoded = format.decode(random_logits(format))
        assert (decoded.shape, decoded.dtype) == ((2, format.num_planes, 3, 5), format.torch_dtype)


def test_one_vs_rest_below_its_threshold_is_none():
    format = MaskFormat.multiclass(["a", "b", "c"], "sigmoid", threshold=0.6)
    # 0.622 is above 0.6, 0.574 is not.
    logits = torch.tensor([[0.5, 0.3], [-1.0, 0.2], [-2.0, 0.1]]).view(1, 3, 1, 2)
    assert format.decode(logits).flatten().tolist() == [0, format.ignore_index]
    many = MaskFormat.multiclass(range(300), "sigmoid", threshold=0.6)
    assert many.decode(torch.zeros(1, 300, 1, 1)).flatten().tolist() == [65535]


def test_log_likelihood_by_hand():
    logits = one_pixel(0.0, math.log(2), math.log(5))
    index = torch.tensor([[[[1]]]], dtype=torch.uint8)
    assert SOFTMAX.log_likelihood(logits, index).flatten().tolist() == pytest.approx([math.log(2 / 8)])
    # class 1 is there, 0 and 2 are not: 1 - 1/2, 2/3, 1 - 5/6.
    expected = [math.log(1 / 2), math.log(2 / 3), math.log(1 / 6)]
    assert SIGMOID.log_likelihood(logits, index).flatten().tolist() == pytest.approx(expected)
    planes = torch.tensor([[[[1]], [[1]], [[IGNORED]]]], dtype=torch.uint8)
    expected = [math.log(1 / 2), math.log(2 / 3), 0.0]
    assert OVERLAP.log_likelihood(logits, planes).flatten().tolist() == pytest.approx(expected)


def test_smoothing_by_hand_and_against_torch():
    logits = one_pixel(0.0, math.log(2), math.log(5))
    index = torch.tensor([[[[1]]]], dtype=torch.uint8)
    # truth 0.3/3 + 0.7 for class 1, 0.3/3 for the others.
    by_hand = 0.1 * math.log(1 / 8) + 0.8 * math.log(2 / 8) + 0.1 * math.log(5 / 8)
    assert SOFTMAX.log_likelihood(logits, index, smoothing=0.3).item() == pytest.approx(by_hand)
    # one logit: 0.7 + 0.3/2 for "there", 0.3/2 for "not there".
    by_hand = 0.85 * math.log(5 / 6) + 0.15 * math.log(1 / 6)
    there = torch.ones(1, 1, 1, 1, dtype=torch.uint8)
    assert BINARY.log_likelihood(one_pixel(math.log(5)), there, smoothing=0.3).item() == pytest.approx(by_hand)

    logits, target = random_logits(SOFTMAX), random_target(SOFTMAX)
    ours = -SOFTMAX.log_likelihood(logits, target, smoothing=0.2).sum() / SOFTMAX.valid(target).sum()
    torchs = F.cross_entropy(logits, target[:, 0].long(), ignore_index=IGNORED, label_smoothing=0.2)
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_exclusive_classes_are_one_sigmoid(smoothing):
    logit = random_logits(BINARY).requires_grad_()
    target = random_target(BINARY)
    pair = torch.cat([torch.zeros_like(logit), logit], 1)

    assert torch.allclose(TWO.probabilities(pair)[:, 1:], BINARY.probabilities(logit), atol=1e-15)
    assert torch.equal(TWO.decode(pair), BINARY.decode(logit))
    ours = BINARY.log_likelihood(logit, target, smoothing)
    theirs = TWO.log_likelihood(pair, target, smoothing)
    assert torch.allclose(ours, theirs, atol=1e-14)
    assert ours.abs().max() > 0.1
    (of_one,) = torch.autograd.grad(ours.sum(), logit, retain_graph=True)
    (of_two,) = torch.autograd.grad(theirs.sum(), logit)
    assert torch.allclose(of_one, of_two, atol=1e-14)


def test_a_tie_is_decoded_alike_by_one_and_by_two_logits():
    assert BINARY.decode(torch.zeros(1, 1, 1, 1)).item() == TWO.decode(torch.zeros(1, 2, 1, 1)).item() == 0


def test_class_weights_weigh_alike_in_one_and_in_two_classes():
    target = torch.tensor([[[[1, 0, IGNORED]]]], dtype=torch.uint8)
    by_hand = [3.5, 1.0, 0.0]
    assert BINARY.choice_weights(target, torch.tensor([3.5])).flatten().tolist() == by_hand
    assert TWO.choice_weights(target, torch.tensor([1.0, 3.5])).flatten().tolist() == by_hand


def test_choice_weights_by_hand():
    weights = torch.tensor([2.0, 3.0, 5.0])
    index = torch.tensor([[[[2, IGNORED]]]], dtype=torch.uint8)
    assert SOFTMAX.choice_weights(index, weights).flatten().tolist() == [5.0, 0.0]
    assert SOFTMAX.choice_weights(index).flatten().tolist() == [1.0, 0.0]
    assert SIGMOID.choice_weights(index, weights)[0, :, 0].T.tolist() == [[1.0, 1.0, 5.0], [0.0, 0.0, 0.0]]
    planes = torch.tensor([[[[1]], [[0]], [[IGNORED]]]], dtype=torch.uint8)
    assert OVERLAP.choice_weights(planes, weights).flatten().tolist() == [2.0, 1.0, 0.0]
    assert OVERLAP.choice_weights(planes).flatten().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_ignored_pixels_add_neither_likelihood_nor_gradient(format, wild):
    target = random_target(format, size=(2, 4, 5))
    hidden = ~format.valid(target).expand(-1, format.num_classes, -1, -1)
    assert 0 < hidden.sum() < hidden.numel()
    logits = random_logits(format, size=(2, 4, 5)).masked_fill(hidden, wild).requires_grad_()

    terms = format.log_likelihood(logits, target)
    terms.sum().backward()

    choices = ~format.valid(target).expand_as(terms)
    assert (terms[choices] == 0).all()
    assert (terms[~choices] < 0).all()
    assert (logits.grad[hidden] == 0).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~hidden] != 0).all()


@pytest.mark.parametrize("format", ALL)
def test_logits_of_probabilities_have_these_probabilities(format):
    logits = 3 * torch.randn(2, format.num_classes, 3, 5, generator=torch.Generator().manual_seed(4))
    probs = format.probabilities(logits)
    again = format.logits_of(probs)
    torch.testing.assert_close(format.probabilities(again), probs)
    assert torch.equal(format.decode(again), format.decode(logits))
    certain = torch.zeros_like(probs)
    certain[:, 0] = 1
    assert format.logits_of(certain).isfinite().all()
    assert torch.equal(format.decode(format.logits_of(certain)), format.decode(60 * certain - 30))


@pytest.mark.parametrize("format", ALL)
def test_half_precision_logits_give_finite_float32(format):
    logits = torch.full((1, format.num_classes, 64, 64), 60000.0, dtype=torch.float16)
    logits[:, ::2] = -60000.0
    target = torch.zeros(1, format.num_planes, 64, 64, dtype=format.torch_dtype)
    terms = format.log_likelihood(logits, target)
    assert terms.dtype == torch.float32
    assert terms.isfinite().all()
    assert format.probabilities(logits).dtype == torch.float32


def test_plane_values_say_what_one_stored_value_can_mean():
    assert BINARY.plane_values == {"background": 0, "vessel": 1}
    assert TWO.plane_values == {"background": 0, "vessel": 1}
    assert SOFTMAX.plane_values == {"sky": 0, "road": 1, "car": 2}
    with pytest.raises(ValueError, match=r"may overlap.*file_per_class"):
        _ = OVERLAP.plane_values
    with pytest.raises(ValueError, match="name the class that the mask marks"):
        _ = MaskFormat.binary("background").plane_values


def test_describe_is_one_short_line_without_colours():
    assert SOFTMAX.describe() == "multiclass softmax [sky, road, car]"
    assert SIGMOID.describe() == "multiclass sigmoid [sky, road, car]"
    assert OVERLAP.describe() == "multilabel sigmoid [WT, TC, ET]"
    assert BINARY.describe() == "binary sigmoid [vessel]"
    assert TWO.describe() == "multiclass softmax [background, vessel]"
    assert MANY.describe() == "multiclass softmax [0, 1, ...300 in all]"


def test_thresholds_are_replaced_where_a_format_has_some():
    several = MaskFormat.multilabel(["a", MaskClass("b", (1, 2, 3))], thresholds=[0.2, 0.5])
    assert [(g.classes, g.threshold, g.optional) for g in several.threshold_groups] == [
        ((0,), 0.2, False),
        ((1,), 0.5, False),
    ]
    assert several.with_thresholds([0.3, 0.7]) == MaskFormat.multilabel(several.classes, thresholds=[0.3, 0.7])
    shared = MaskFormat.multiclass(["a", "b", "c"], "sigmoid")
    assert [tuple(group) for group in shared.threshold_groups] == [((0, 1, 2), None, True)]
    assert shared.with_thresholds([0.3]) == MaskFormat.multiclass(["a", "b", "c"], "sigmoid", 0.3)
    assert shared.with_thresholds([0.3]).with_thresholds([None]) == shared
    softmax = MaskFormat.multiclass(["a", "b"])
    assert softmax.threshold_groups == ()
    assert softmax.with_thresholds([]) is softmax
    for format, given in ((several, [0.3]), (shared, [0.3, 0.4]), (softmax, [0.3]), (several, [0.3, 1.0])):
        with pytest.raises(ValueError, match="threshold"):
            format.with_thresholds(given)


@pytest.mark.parametrize("format", ALL[:5], ids=MaskFormat.describe)
def test_claims_are_the_logits_of_the_classes_that_could_be_decoded(format):
    logits = torch.randn(2, format.num_classes, 5, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    claims = format.claims(logits)
    held = claims > -torch.inf
    assert torch.equal(claims[held], logits[held])
    if format.classes_overlap:
        assert held.all()
    else:
        assert torch.equal(held, format.expand(logits.argmax(1, keepdim=True)))


@pytest.mark.parametrize("format", ALL[:5], ids=MaskFormat.describe)
def test_planes_are_changed_class_by_class(format):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, format.num_classes, 6, 9)))
    planes = format.decode(logits)[0].permute(1, 2, 0).numpy().astype(format.dtype)
    planes[0, 0] = format.ignore_index
    number = format.num_classes - 1
    held, where = format.holds(planes, number), rng.random((6, 9)) < 0.5
    put, removed = planes.copy(), planes.copy()
    format.put(put, number, where)
    format.remove(removed, number, where)
    for changed in (put, removed):
        assert (changed[0, 0] == format.ignore_index).all()
    where[0, 0] = False
    assert np.array_equal(format.holds(put, number), held | where)
    assert np.array_equal(format.holds(removed, number), held & ~where)
    assert np.array_equal(removed[~where], planes[~where])
    vacant = format.vacant(planes, number)
    assert not (vacant & held).any()
    assert not vacant[0, 0]
    assert vacant.any()
