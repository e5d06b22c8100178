from __future__ import annotations

import itertools

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.losses.region import Dice, Jaccard, Lovasz, Tversky

BINARY = MaskFormat.binary("cell")
PAIR = MaskFormat.multilabel(["liver", "tumour"])
EXCLUSIVE = MaskFormat.multiclass(["sky", "road", "tree"])
OVERLAP_LOSSES = [Dice, Jaccard, Tversky]


def _certain(planes) -> torch.Tensor:
    """Logits of 0/1 planes: probabilities of exactly 0 and 1 in float32."""
    return torch.where(torch.as_tensor(planes) == 1, 200.0, -200.0)


def _planes(*planes) -> torch.Tensor:
    """(1, P, H, W) uint8."""
    return torch.tensor(planes, dtype=torch.uint8).unsqueeze(0)


def test_overlap_losses_by_hand():
    #   target 1 1 0   pred 1 0 0   Σpt 1, Σp 3, Σt 2: fp 2, fn 1
    #          0 0 ?        1 1 1   (? is ignored)
    target = _planes([[1, 1, 0], [0, 0, 255]])
    logits = _certain(_planes([[1, 0, 0], [1, 1, 1]]))
    assert Dice(BINARY)(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (3 + 2 + 1))
    assert Jaccard(BINARY)(logits, target).item() == pytest.approx(1 - (1 + 1) / (4 + 1))
    # a miss costs 0.7 and a false alarm 0.3; swapped, the sum would be 1.7 instead of 1.3
    assert Tversky(BINARY)(logits, target).item() == pytest.approx(1 - (1 + 1) / (1 + 0.3 * 2 + 0.7 * 1 + 1))
    assert Tversky(BINARY, alpha=2, beta=0)(logits, target).item() == pytest.approx(1 - 2 / (1 + 4 + 1))
    assert Lovasz(BINARY)(logits, target).item() == pytest.approx(1 - 1 / 4)


def test_classes_are_scored_alone_and_then_averaged():
    """mmseg pools the classes: a small class that is missed altogether costs 0.004 there."""
    height, width = 40, 50
    target = torch.zeros((1, 2, height, width), dtype=torch.uint8)
    target[:, 0] = 1
    target[0, 1, :2, :4] = 1  # a tumour of 8 pixels in a liver of 2000
    pred = target.clone()
    pred[:, 1] = 0
    logits = _certain(pred)
    assert Dice(PAIR)(logits, target).item() == pytest.approx((0 + (1 - 1 / (8 + 1))) / 2)
    assert Jaccard(PAIR)(logits, target).item() == pytest.approx((0 + (1 - 1 / (8 + 1))) / 2)
    assert Lovasz(PAIR)(logits, target).item() == pytest.approx((0 + 1) / 2)


def test_sums_run_over_the_batch():
    # image 0: tp 1 fp 0, image 1: tp 0 fp 1; per image the mean would be (0 + 1/2) / 2
    target = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).view(2, 1, 1, 2)
    pred = torch.tensor([1, 0, 0, 1], dtype=torch.uint8).view(2, 1, 1, 2)
    assert Dice(BINARY)(_certain(pred), target).item() == pytest.approx(1 - 3 / 4)


@pytest.mark.parametrize("make", [*OVERLAP_LOSSES, Lovasz])
def test_false_positives_of_an_absent_class_cost(make):
    """SMP: loss 0 and no gradient."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    target = _planes([[0, 0, 0], [0, 0, 255]])
    logits = torch.full((1, 1, 2, 3), 1.5).requires_grad_()
    peer = smp.losses.DiceLoss("binary")(logits, (target == 1).float())
    assert peer == 0
    loss = make(BINARY)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss > 0.3
    assert gradient.sum() > 0  # a step against it lowers the logits
    assert (gradient >= 0).all()
    # The Lovász loss pulls at the worst pixel, the others at all of them; none at the ignored one.
    assert (gradient > 0).sum() == (1 if make is Lovasz else 5)


@pytest.mark.parametrize("make", [*OVERLAP_LOSSES, Lovasz])
def test_nothing_predicted_of_an_absent_class_is_perfect(make):
    target = _planes([[0, 0, 0], [0, 0, 255]])
    assert make(BINARY)(_certain(torch.zeros_like(target)), target) == 0


@pytest.mark.parametrize("make", [*OVERLAP_LOSSES, Lovasz])
def test_a_perfect_prediction_costs_nothing_however_much_is_ignored(make):
    """mmseg: 0.143 with a quarter ignored, 1.0 with everything ignored."""
    target = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2], [0, 0, 1, 1]], dtype=torch.uint8).view(1, 1, 3, 4)
    logits = 200.0 * EXCLUSIVE.expand(target).float()
    target[..., 0] = 255
    logits[..., 0] = torch.tensor([0.0, 0.0, 200.0]).view(1, 3, 1)
    assert make(EXCLUSIVE)(logits, target) == 0
    assert make(EXCLUSIVE)(logits, torch.full_like(target, 255)) == 0
    assert make(EXCLUSIVE)(logits.roll(1, dims=1), target) > 0.5


@pytest.mark.parametrize(("mode", "format"), [("multiclass", EXCLUSIVE), ("multilabel", PAIR), ("binary", BINARY)])
def test_agrees_with_smp_where_every_class_is_present(mode, format, make_pair):
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, target = make_pair(format)
    target = torch.where(target == 255, 1, target).to(torch.uint8)
    peer_target = target[:, 0].long() if mode == "multiclass" else target.long()
    peers = {
        Dice: losses.DiceLoss(mode, smooth=0.5),  # the peer halves the sums below the line, so its pixel counts twice
        Jaccard: losses.JaccardLoss(mode, smooth=1.0),
        Tversky: losses.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7),
    }
    for make, peer in peers.items():
        assert make(format)(logits, target).item() == pytest.approx(peer(logits, peer_target).item(), rel=1e-5)


def test_lovasz_agrees_with_smp_where_every_class_is_present(make_pair):
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, target = make_pair(EXCLUSIVE)
    assert {0, 1, 2, 255} == set(target.flatten().tolist())
    expected = losses.LovaszLoss("multiclass", ignore_index=255)(logits, target[:, 0].long())
    assert Lovasz(EXCLUSIVE)(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_tversky_contains_jaccard(format, make_pair):
    logits, target = make_pair(format)
    jaccard = Jaccard(format)(logits, target)
    assert Tversky(format, alpha=1, beta=1)(logits, target).item() == pytest.approx(jaccard.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{"alpha": -1}, {"beta": float("nan")}, {"alpha": "0.3"}, {"alpha": 0, "beta": 0}])
def test_strange_prices_are_refused(options):
    with pytest.raises(ValueError, match="expected a finite number"):
        Tversky(BINARY, **options)


def _lovasz_by_definition(errors: list[float], truth: list[bool]) -> float:
    """Σ m_π(i) · (Δ({π1..πi}) - Δ({π1..πi-1})) with Δ(M) the Jaccard loss if exactly the pixels M are wrong."""

    def jaccard_loss(wrong: set[int]) -> float:
        positives = {i for i, t in enumerate(truth) if t}
        union = positives | wrong
        return len(wrong) / len(union) if union else 0.0

    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    steps = [jaccard_loss(set(order[: i + 1])) - jaccard_loss(set(order[:i])) for i in range(len(order))]
    return sum(errors[i] * step for i, step in zip(order, steps, strict=True))


@pytest.mark.parametrize("positives", range(7))
def test_lovasz_by_its_definition(positives):
    # 2x4 pixels, two of them ignored, with 0..6 true pixels among the rest
    random = torch.Generator().manual_seed(positives)
    logits = torch.randn((1, 1, 2, 4), generator=random, dtype=torch.float64)
    target = torch.tensor([1] * positives + [0] * (6 - positives) + [255, 255], dtype=torch.uint8).view(1, 1, 2, 4)
    probs = logits.sigmoid().flatten().tolist()[:6]
    truth = [i < positives for i in range(6)]
    errors = [1 - p if t else p for p, t in zip(probs, truth, strict=True)]
    expected = _lovasz_by_definition(errors, truth)
    assert Lovasz(BINARY)(logits, target).item() == pytest.approx(expected, abs=1e-12)


def test_lovasz_is_the_jaccard_loss_of_every_certain_prediction():
    target = _planes([[1, 1], [0, 255]])
    for bits in itertools.product([0, 1], repeat=4):
        pred = torch.tensor(bits, dtype=torch.uint8).view(1, 1, 2, 2)
        both = bits[0] + bits[1]
        union = 2 + bits[2]
        assert Lovasz(BINARY)(_certain(pred), target).item() == pytest.approx(1 - both / union)


def test_lovasz_keeps_its_digits_on_large_images():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn((1, 1, 500, 700), generator=random)
    target = (torch.rand((1, 1, 500, 700), generator=random) < 0.3).to(torch.uint8)
    exact = Lovasz(BINARY)(logits.double(), target).item()
    assert Lovasz(BINARY)(logits, target).item() == pytest.approx(exact, rel=1e-6)


def test_lovasz_takes_the_first_of_equal_errors():
    # An absent class with the same probability everywhere: equal runs must pull at the same pixel.
    logits = torch.zeros((2, 1, 40, 30)).requires_grad_()
    loss = Lovasz(BINARY)(logits, torch.zeros((2, 1, 40, 30), dtype=torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.flatten().nonzero().flatten().tolist() == [0]
