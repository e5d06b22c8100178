"""Sums and gradients of the fused operator against autograd over whole tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.ops import upsample
from segkit.ops.loss_sums import PixelTerm, loss_sums
from segkit.ops.loss_tiles import Choices
from segkit.ops.upsample import CoarseLogits
from tests.ops.reference import reference_sums

IGNORED = 255
KINDS = {
    "softmax": Choices(True, True, IGNORED),
    "one-vs-rest": Choices(False, True, IGNORED),
    "overlapping": Choices(False, False, IGNORED),
}
TERMS = {
    "none": None,
    "cross-entropy": PixelTerm(),
    "smoothed": PixelTerm(smoothing=0.1),
    "focal": PixelTerm(gamma=2.0),
    "focal-half": PixelTerm(gamma=0.5),
}


def make_pair(choices: Choices, classes: int, size_hw=(5, 7), factor: int = 1, crop: int = 0, dtype=torch.float64):
    """Coarse logits and a target with a line ignored; the target is `crop` pixels smaller than the logits."""
    random = torch.Generator().manual_seed(classes)
    values = 2.0 * torch.randn((2, classes, *size_hw), generator=random, dtype=torch.float64)
    full = size_hw[0] * factor, size_hw[1] * factor
    planes = 1 if choices.index_planes else classes
    shape = (2, planes, full[0] - crop, full[1] - crop)
    target = torch.randint(0, classes if choices.index_planes else 2, shape, generator=random).to(torch.uint8)
    target[0, :, 1] = IGNORED
    return values.to(dtype).requires_grad_(), full, target


def compare(logits: CoarseLogits, target, choices, term, overlap=True, limit=1e-12):
    """Sums and gradients of both ways, relative to their size."""
    random = torch.Generator().manual_seed(3)
    results = []
    for way in (loss_sums, reference_sums):
        sums = way(logits, target, choices, term, overlap)
        random.manual_seed(3)
        factors = [torch.randn(s.shape, generator=random, dtype=torch.float64) for s in sums]
        total = sum((s * f).sum() for s, f in zip(sums, factors, strict=True))
        gradient = torch.autograd.grad(total, logits.values)[0] if total.requires_grad else torch.zeros(1)
        results.append([*sums, gradient])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= limit * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("classes", [1, 2, 5, 150])
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_sums_and_gradients_agree_with_autograd(choices, term, classes):
    values, full, target = make_pair(choices, classes)
    compare(CoarseLogits(values, full), target, choices, term)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_upsampling_is_part_of_the_sums(choices, factor, align_corners):
    values, full, target = make_pair(choices, 3, factor=factor, crop=1)
    weighted = PixelTerm(class_weights=torch.tensor([0.5, 2.0, 1.25]))
    compare(CoarseLogits(values, full, None, align_corners), target, choices, weighted)


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_class_weights_and_smoothing_go_together(choices):
    values, full, target = make_pair(choices, 3)
    term = PixelTerm(smoothing=0.2, class_weights=torch.tensor([0.5, 2.0, 0.0]))
    compare(CoarseLogits(values, full), target, choices, term)
    compare(CoarseLogits(values, full), target, choices, term, overlap=False)


@pytest.mark.parametrize("numbers", [1, 64, 2**18])
@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_the_size_of_tiles_changes_nothing(monkeypatch, choices, factor, numbers):
    monkeypatch.setattr(upsample, "_TILE_NUMBERS", numbers)
    monkeypatch.setattr(upsample, "_TILE_COLUMNS", 8)
    values, full, target = make_pair(choices, 4, factor=factor, crop=2)
    compare(CoarseLogits(values, full, None, False), target, choices, PixelTerm())


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_any_layout_in_memory(choices, layout):
    values, full, target = make_pair(choices, 3)
    plain = values.detach()
    changed = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.mT.contiguous().mT,
        "strided": torch.stack([plain, plain], -1)[..., 0],
    }[layout].requires_grad_()
    assert not changed.is_contiguous()
    compare(CoarseLogits(changed, full), target.mT.contiguous().mT, choices, PixelTerm())


@given(
    size_hw=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factor=st.integers(1, 5),
    crop=st.integers(0, 3),
    classes=st.integers(1, 4),
    kind=st.sampled_from(sorted(KINDS)),
    align_corners=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_any_size(size_hw, factor, crop, classes, kind, align_corners, seed):
    choices, random = KINDS[kind], torch.Generator().manual_seed(seed)
    values = torch.randn((1, classes, *size_hw), generator=random, dtype=torch.float64).requires_grad_()
    full = size_hw[0] * factor, size_hw[1] * factor
    planes = 1 if choices.index_planes else classes
    shape = (1, planes, max(1, full[0] - crop), max(1, full[1] - crop))
    target = torch.randint(0, classes if choices.index_planes else 2, shape, generator=random).to(torch.uint8)
    target[torch.rand(shape, generator=random) < 0.3] = IGNORED
    compare(CoarseLogits(values, full, None, align_corners), target, choices, PixelTerm())


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_ignored_logits_may_be_anything(choices, factor, wild):
    values, full, target = make_pair(choices, 3, factor=factor)
    with torch.no_grad():
        values[0, :2, 1] = wild
    target[0, :, : 3 * factor] = IGNORED  # all that line 1 is a part of
    sums = loss_sums(CoarseLogits(values, full), target, choices, PixelTerm())
    (gradient,) = torch.autograd.grad(sum(s.sum() for s in sums), values)
    assert all(s.isfinite().all() for s in sums)
    assert gradient.isfinite().all()
    assert (gradient[0, :, 1] == 0).all()
    assert (gradient[0, :, 3:] != 0).any()


def test_many_confident_pixels_are_summed_with_all_digits():
    """Added one by one in float32, 0.9 of 131072 pixels lose a thousandth."""
    logit = math.log(9.0)  # probability 0.9 of the first of two classes
    values = torch.tensor([logit, 0.0]).view(1, 2, 1, 1).expand(1, 2, 400, 401).contiguous()
    target = torch.zeros((1, 1, 400, 401), dtype=torch.uint8)
    sums = loss_sums(CoarseLogits.of(values), target, KINDS["softmax"], PixelTerm())
    assert sums.both[0].item() == pytest.approx(0.9 * 400 * 401, rel=1e-6)
    assert sums.probs.tolist() == pytest.approx([0.9 * 400 * 401, 0.1 * 400 * 401], rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_confident_pixels_keep_their_digits(choices, offset, gamma):
    """Also where all logits of a softmax share an offset, which says nothing."""
    logits = torch.tensor([10.0, 0.0, -3.0] if choices.softmax else [12.0, -12.0, 9.0]).view(1, 3, 1, 1)
    logits = (logits + (offset if choices.softmax else 0.0)).requires_grad_()
    planes = [[0]] if choices.index_planes else [[1], [0], [1]]
    target = torch.tensor(planes, dtype=torch.uint8).view(1, -1, 1, 1)
    results = []
    for values, way in ((logits, loss_sums), (logits.detach().double().requires_grad_(), reference_sums)):
        sums = way(CoarseLogits.of(values), target, choices, PixelTerm(gamma=gamma))
        results.append((sums.term.double(), torch.autograd.grad(sums.term, values)[0].double()))
    (value, gradient), (exact, exact_gradient) = results
    assert value.item() == pytest.approx(exact.item(), rel=2e-2)
    assert torch.allclose(gradient, exact_gradient, rtol=2e-2, atol=0)


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_all_ignored_sums_to_nothing(choices):
    values, full, target = make_pair(choices, 3)
    target.fill_(IGNORED)
    sums = loss_sums(CoarseLogits(values, full), target, choices, PixelTerm(smoothing=0.1))
    (gradient,) = torch.autograd.grad(sum(s.sum() for s in sums), values)
    assert all((s == 0).all() for s in sums)
    assert (gradient == 0).all()


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_a_counted_nan_is_not_hidden(choices):
    values, full, target = make_pair(choices, 3)
    with torch.no_grad():
        values[1, 0, 2, 2] = math.nan
    assert loss_sums(CoarseLogits(values, full), target, choices, PixelTerm()).term.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_half_precision_is_computed_in_float32(choices, factor, dtype):
    values, full, target = make_pair(choices, 3, factor=factor, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = loss_sums(CoarseLogits(values, full), target, choices, PixelTerm())
    exact = reference_sums(CoarseLogits(values.detach().double(), full), target, choices, PixelTerm())
    for ours, theirs in zip(sums, exact, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours.double(), theirs, rtol=1e-5)
    (gradient,) = torch.autograd.grad(sums.term, values)
    assert gradient.dtype == dtype


def test_equal_inputs_give_equal_bits():
    values, full, target = make_pair(KINDS["softmax"], 5, (40, 30), factor=4, dtype=torch.float32)
    runs = []
    for _ in range(2):
        sums = loss_sums(CoarseLogits(values, full), target, KINDS["softmax"], PixelTerm())
        runs.append((torch.cat([s.flatten() for s in sums]), *torch.autograd.grad(sums.term + sums.both.sum(), values)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_wide_planes_are_int32_on_a_device():
    """More than 255 classes: planes are uint16 in files and int32 in a batch, 65535 is ignored."""
    choices = Choices(True, True, 65535)
    values = torch.randn((1, 300, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 299, 256, 65535, 255, 1, 2, 3, 4, 5, 6, 7], dtype=torch.int32).view(1, 1, 3, 4)
    compare(CoarseLogits(values.requires_grad_(), (3, 4)), target, choices, PixelTerm())


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_compiling_breaks_no_graph(choices):
    """torch.compile takes the operators as they are, forwards and backwards."""
    values, full, target = make_pair(choices, 3, factor=2)

    def loss(values):
        sums = loss_sums(CoarseLogits(2.0 * values, full), target, choices, PixelTerm())
        return sums.term / sums.weight - (sums.both / (1.0 + sums.probs + sums.truth)).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,), (gradient,) = (torch.autograd.grad(f(values), values) for f in (loss, compiled))
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-15)


def test_the_operators_keep_torchs_rules():
    values, full, target = make_pair(KINDS["softmax"], 3, factor=2)
    plan = [1.0, 1.0, 255.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    torch.library.opcheck(torch.ops.segkit.loss_sums.default, (values, target, None, list(full), plan))
