"""The kernels against autograd over whole tensors in float64: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from segkit.ops import loss_cells_triton, loss_sums, loss_sums_triton, loss_tiles_triton
from segkit.ops.loss_sums import LossSums, PixelTerm
from segkit.ops.loss_tiles import Choices, TileLoss
from segkit.ops.upsample import CoarseLogits
from tests.ops import kernels
from tests.ops.reference import reference_sums

pytestmark = kernels.MARKS
IGNORED = 255
KINDS = {
    "softmax": Choices(True, True, IGNORED),
    "one-vs-rest": Choices(False, True, IGNORED),
    "overlapping": Choices(False, False, IGNORED),
}
# Every kind plain, and those that differ upsampled: the interpreter takes a millisecond for each pixel of a cell.
PLAIN_AND_UPSAMPLED = pytest.mark.parametrize(
    ("kind", "factor"), [("softmax", 1), ("one-vs-rest", 1), ("overlapping", 1), ("softmax", 2), ("overlapping", 2)]
)
TERMS = {
    "none": None,
    "cross-entropy": PixelTerm(),
    "smoothed": PixelTerm(smoothing=0.1, class_weights=torch.tensor([0.5, 2.0, 0.0])),
    "focal": PixelTerm(gamma=2.0, class_weights=torch.tensor([0.5, 2.0, 1.25])),
    "focal-half": PixelTerm(gamma=0.5),
}
# Relative to the largest number. The interpreter cuts bfloat16 off where a GPU rounds.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def only_kernels(monkeypatch):
    """The kernels are what is dispatched to, and the definition is never used; gives the names of what was launched."""
    launched = []

    def record(name):
        launch = getattr(loss_sums_triton, name)
        monkeypatch.setattr(loss_sums_triton, name, lambda *a: (launched.append(name), launch(*a))[1])

    def fail(*_):
        raise AssertionError("the definition ran")

    record("forward")
    record("backward")
    monkeypatch.setattr(TileLoss, "forward", fail)
    monkeypatch.setattr(TileLoss, "backward", fail)
    if not kernels.ON_GPU:
        monkeypatch.setattr(loss_sums, "backend_of", lambda *_: "triton")
    return launched


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles of few pixels, of which each program has several, and corners of one image at a time."""
    monkeypatch.setattr(loss_tiles_triton, "_NUMBERS_PER_WARP", 16)
    monkeypatch.setattr(loss_sums_triton, "_PIXELS", 4)
    monkeypatch.setattr(loss_cells_triton, "_CELLS", 2)
    monkeypatch.setattr(loss_sums_triton, "_PROGRAMS", 3)
    monkeypatch.setattr(loss_cells_triton, "_PROGRAMS", 3)
    monkeypatch.setattr(loss_cells_triton, "_CORNER_BYTES", 1)


def make_pair(choices: Choices, classes: int, size_hw=None, factor: int = 1, crop: int = 0, dtype=torch.float64):
    """Coarse logits of two images and a target with a line ignored, `crop` pixels smaller than the logits."""
    size_hw = size_hw or ((5, 7) if factor == 1 else (2, 3))
    random = torch.Generator().manual_seed(classes)
    values = 2.0 * torch.randn((2, classes, *size_hw), generator=random, dtype=torch.float64)
    full = size_hw[0] * factor, size_hw[1] * factor
    planes = 1 if choices.index_planes else classes
    shape = (2, planes, full[0] - crop, full[1] - crop)
    target = torch.randint(0, classes if choices.index_planes else 2, shape, generator=random).to(torch.uint8)
    target[0, :, 1] = IGNORED
    return values.to(dtype), full, target


def run(logits: CoarseLogits, target, choices, term, overlap=True) -> tuple[LossSums, torch.Tensor]:
    """Sums, and the gradient of the values from an uneven mixture of them."""
    values = logits.values.to(kernels.DEVICE).requires_grad_()
    logits = CoarseLogits(values, logits.size_hw, None, logits.align_corners)
    if term is not None and term.class_weights is not None:
        term = PixelTerm(term.gamma, term.smoothing, term.class_weights.to(kernels.DEVICE))
    sums = loss_sums.loss_sums(logits, target.to(kernels.DEVICE), choices, term, overlap)
    return sums, torch.autograd.grad(mixture(sums), values)[0]


def expect(logits: CoarseLogits, target, choices, term, overlap=True) -> tuple[LossSums, torch.Tensor]:
    """The same by autograd over whole tensors in float64."""
    values = logits.values.detach().double().requires_grad_()
    logits = CoarseLogits(values, logits.size_hw, None, logits.align_corners)
    sums = reference_sums(logits, target, choices, term, overlap)
    return sums, torch.autograd.grad(mixture(sums), values)[0]


def mixture(sums: LossSums) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    factors = [torch.randn(s.shape, generator=random, dtype=torch.float64) for s in sums]
    return sum((s * f.to(s)).sum() for s, f in zip(sums, factors, strict=True))


def compare(logits: CoarseLogits, target, choices, term, overlap=True):
    (ours, gradient), (theirs, expected) = (way(logits, target, choices, term, overlap) for way in (run, expect))
    dtype = logits.values.dtype
    assert gradient.dtype == dtype
    assert_close(gradient, expected, LIMITS[dtype])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(a, b, min(LIMITS[dtype], LIMITS[torch.float32]))


def assert_close(ours, theirs, limit):
    assert (ours.cpu().double() - theirs).abs().max() <= limit * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_sums_and_gradients_agree_with_autograd(choices, term):
    values, full, target = make_pair(choices, 3)
    compare(CoarseLogits(values, full), target, choices, term)
    if term is not None:
        compare(CoarseLogits(values, full), target, choices, term, overlap=False)


@PLAIN_AND_UPSAMPLED
@pytest.mark.parametrize("classes", [1, 150])
def test_any_number_of_classes(kind, classes, factor):
    values, full, target = make_pair(KINDS[kind], classes, (2, 3), factor)
    compare(CoarseLogits(values, full), target, KINDS[kind], PixelTerm())


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("kind", "factor"),
    [("softmax", 2), ("one-vs-rest", 2), ("overlapping", 2), ("softmax", 3), ("overlapping", 4), ("softmax", 8)],
)
def test_upsampling_is_part_of_the_sums(kind, factor, align_corners):
    values, full, target = make_pair(KINDS[kind], 3, (2, 3), factor, crop=1 if factor < 8 else 5)
    compare(CoarseLogits(values[1:], full, None, align_corners), target[1:], KINDS[kind], TERMS["smoothed"])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("full", [(1, 1), (7, 5), (4, 2), (1, 9)])
def test_any_ratio(full, align_corners):
    """Odd ratios, fewer pixels than values, a single line."""
    choices = KINDS["softmax"]
    values, _, target = make_pair(choices, 3, (3, 4), factor=3)
    compare(CoarseLogits(values, full, None, align_corners), target[..., : full[0], : full[1]], choices, PixelTerm())
    line = values[:, :, :1]
    compare(CoarseLogits(line, full, None, align_corners), target[..., : full[0], : full[1]], choices, PixelTerm())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_programs_take_several_tiles(choices, factor):
    values, full, target = make_pair(choices, 3, (3, 5) if factor == 1 else (2, 3), factor, crop=1)
    compare(CoarseLogits(values, full), target, choices, TERMS["focal"])


@PLAIN_AND_UPSAMPLED
def test_offsets_of_64_bits(monkeypatch, kind, factor):
    choices = KINDS[kind]
    large = torch.empty((1, 150, 4096, 4096), device="meta")
    loss = TileLoss(choices, 3, None, 0.0, None, True)
    assert loss_tiles_triton.constants(loss, torch.float32, large)["OFFSET"].primitive_bitwidth == 64
    values, full, target = make_pair(choices, 3, factor=factor)
    assert loss_tiles_triton.constants(loss, torch.float32, values, target)["OFFSET"].primitive_bitwidth == 32
    monkeypatch.setattr(loss_tiles_triton, "_SMALL_OFFSETS", 0)
    compare(CoarseLogits(values, full), target, choices, PixelTerm())


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
@PLAIN_AND_UPSAMPLED
def test_any_layout_in_memory(kind, layout, factor):
    choices = KINDS[kind]
    plain, full, target = make_pair(choices, 3, factor=factor)
    changed = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.mT.contiguous().mT,
        "strided": torch.stack([plain, plain], -1)[..., 0],
    }[layout]
    assert not changed.is_contiguous()
    compare(CoarseLogits(changed, full), target.mT.contiguous().mT, choices, PixelTerm())
    if factor == 1:
        compare(CoarseLogits(changed, full), target, choices, PixelTerm())


@PLAIN_AND_UPSAMPLED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float32_and_less_is_computed_in_float32(kind, dtype, factor):
    choices = KINDS[kind]
    values, full, target = make_pair(choices, 3, factor=factor, dtype=dtype)
    wide = torch.int64 if dtype == torch.float16 else torch.int32
    compare(CoarseLogits(values, full), target.to(wide), choices, TERMS["focal"])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_small_losses_keep_their_digits(choices, sign):
    """Logits of 20: p is 1 in float32, 1 - p is 2e-9."""
    values, full, target = make_pair(choices, 3)
    truth = target == torch.arange(3).view(1, 3, 1, 1) if choices.index_planes else target == 1
    values = (torch.where(truth, 20.0, -20.0) * sign + values).float()
    compare(CoarseLogits(values, full), target, choices, TERMS["focal"])
    if not choices.softmax:
        compare(CoarseLogits(values, full), target, choices, PixelTerm(), overlap=False)
        ours = run(CoarseLogits(values, full), target, choices, PixelTerm(), False)[0].term
        exact = expect(CoarseLogits(values, full), target, choices, PixelTerm(), False)[0].term
        assert ours.item() == pytest.approx(exact.item(), rel=1e-5)


@PLAIN_AND_UPSAMPLED
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_ignored_logits_may_be_anything(kind, wild, factor):
    choices = KINDS[kind]
    values, full, target = make_pair(choices, 3, factor=factor)
    values[0, :2, 1] = wild
    target[0, :, : 3 * factor] = IGNORED
    tame = torch.where(values.isfinite(), values, 0.0)
    results = [run(CoarseLogits(v, full), target, choices, TERMS["focal"]) for v in (values, tame)]
    for ours, theirs in zip(*([*sums, gradient] for sums, gradient in results), strict=True):
        assert torch.equal(ours, theirs)
    assert (results[0][1][0, :, 1] == 0).all()


@PLAIN_AND_UPSAMPLED
def test_all_ignored_sums_to_nothing(kind, factor):
    choices = KINDS[kind]
    values, full, target = make_pair(choices, 3, factor=factor)
    sums, gradient = run(CoarseLogits(values, full), target.fill_(IGNORED), choices, TERMS["smoothed"])
    assert all((s == 0).all() for s in sums)
    assert (gradient == 0).all()


@PLAIN_AND_UPSAMPLED
def test_a_counted_nan_is_not_hidden(kind, factor):
    choices = KINDS[kind]
    values, full, target = make_pair(choices, 3, factor=factor)
    values[1, 0, 1, 2] = math.nan
    assert run(CoarseLogits(values, full), target, choices, PixelTerm())[0].term.isnan()


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_stride_padding_has_no_gradient(choices):
    values, full, target = make_pair(choices, 3, crop=2)
    gradient = run(CoarseLogits(values, full), target, choices, PixelTerm())[1]
    assert (gradient[:, :, -2:] == 0).all()
    assert (gradient[..., -2:] == 0).all()
    assert (gradient[1, :, :-2, :-2] != 0).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS.keys())
def test_equal_inputs_give_equal_bits(choices, factor):
    values, full, target = make_pair(choices, 3, factor=factor, dtype=torch.float32)
    runs = [run(CoarseLogits(values, full), target, choices, PixelTerm()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*([*sums, gradient] for sums, gradient in runs), strict=True))


@pytest.mark.parametrize("factor", [1, 2])
def test_the_kernels_run_and_nothing_else(only_kernels, factor):
    values, full, target = make_pair(KINDS["softmax"], 3, factor=factor)
    run(CoarseLogits(values, full), target, KINDS["softmax"], PixelTerm())
    assert only_kernels == ["forward", "backward"]


class Largest(TorchDispatchMode):
    """Remembers the most numbers of a tensor that torch made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # In place nothing is made; the interpreter sees bytes as numbers there.
        if not func.overloadpacket.__name__.endswith("_"):
            tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            self.numbers = max([self.numbers, *(t.numel() for t in tensors)])
        return result


@pytest.mark.usefixtures("small_tiles")
def test_nothing_of_full_resolution_is_built():
    values, full, target = make_pair(KINDS["softmax"], 20, (2, 3), factor=4)
    values, target = values.to(kernels.DEVICE), target.to(kernels.DEVICE)
    loss = TileLoss(KINDS["softmax"], 20, 0.0, 0.0, None, True)
    with Largest() as largest:
        sums, normalizers = loss_sums_triton.forward(CoarseLogits(values, full), target, loss)
        loss_sums_triton.backward(CoarseLogits(values, full), target, loss, normalizers, torch.ones_like(sums))
    # The corners of one image are the largest; there are 16 pixels for each coarse value.
    assert largest.numbers == 4 * values[0].numel() == 2 * values.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("factor", [1, 2])
def test_the_device_is_not_waited_for(factor):
    values, full, target = make_pair(KINDS["softmax"], 3, factor=factor)
    values, target = values.cuda().requires_grad_(), target.cuda()
    for mode in ("default", "error"):  # the first run compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sums = loss_sums.loss_sums(CoarseLogits(values, full), target, KINDS["softmax"], PixelTerm())
            torch.autograd.grad(sums.term + sums.both.sum(), values)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_compiling_breaks_no_graph(only_kernels):
    values, full, target = (v.to(kernels.DEVICE) if torch.is_tensor(v) else v for v in make_pair(KINDS["softmax"], 3))

    def loss(values):
        sums = loss_sums.loss_sums(CoarseLogits(2.0 * values, full), target, KINDS["softmax"], PixelTerm())
        return sums.term / sums.weight - (sums.both / (1.0 + sums.probs + sums.truth)).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    values.requires_grad_()
    (expected,), (gradient,) = (torch.autograd.grad(f(values), values) for f in (loss, compiled))
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-15)
    assert only_kernels == ["forward", "backward"] * 2
