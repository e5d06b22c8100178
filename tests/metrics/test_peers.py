"""Scores like those of other toolkits: equal to the toolkit where it is installed, to its formula elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segkit import MaskFormat, PixelCounts
from segkit.metrics.peers import PEERS, score_like

BINARY = MaskFormat.binary("vessel")
OVERLAPPING = MaskFormat.multilabel(["tumour", "core", "oedema", "cyst"])
EXCLUSIVE = MaskFormat.multiclass(["background", "liver", "spleen", "kidney", "stomach"])
ONE_VS_REST = MaskFormat.multiclass(["sky", "road", "car", "tree", "sign"], "sigmoid")
FORMATS = [BINARY, OVERLAPPING, EXCLUSIVE, ONE_VS_REST]
SIZE = (7, 11)


def draw(format, seed):
    """(n, P, H, W) predictions and targets with classes that are empty in images, absent throughout, and ignored."""
    rng = np.random.default_rng(seed)
    images, planes = int(rng.integers(2, 6)), format.num_planes
    shape = (images, planes, *SIZE)
    if format.planes_are_bits:
        target = rng.random(shape) < rng.random((images, planes, 1, 1))
        pred = target ^ (rng.random(shape) < 0.3)
        target &= rng.random((images, planes, 1, 1)) < 0.7  # empty in the truth, predicted still
        pred &= rng.random((images, planes, 1, 1)) < 0.7
        if seed % 3 == 0 and planes > 1:
            pred[:, 1] = target[:, 1] = False
        pred, target = pred.astype(np.uint8), target.astype(np.uint8)
    else:
        classes = rng.permutation(format.num_classes)[: rng.integers(2, format.num_classes)]
        target = rng.choice(classes, shape).astype(np.uint8)
        others = rng.choice(rng.permutation(format.num_classes)[:3], shape)
        pred = np.where(rng.random(shape) < 0.4, others, target).astype(np.uint8)
    target[rng.random(shape) < 0.15] = format.ignore_index
    return torch.from_numpy(pred), torch.from_numpy(target)


def counted(format, pred, target):
    counts = PixelCounts(format)
    counts.update(pred, target)
    return counts.compute()


def one_hot(format, pred, target):
    """(n, C, H, W) bool maps of both, empty where ignored."""
    valid = format.valid(target)
    return format.expand(pred) & valid, format.expand(target) & valid


def of_smp(format, pred, target):
    from segmentation_models_pytorch.metrics import get_stats, iou_score

    if format.num_planes == 1 and not format.planes_are_bits:
        options = {"mode": "multiclass", "num_classes": format.num_classes, "ignore_index": format.ignore_index}
        stats = get_stats(pred[:, 0].long(), target[:, 0].long(), **options)
    else:  # SMP ignores nothing there: the maps are empty where ignored, which adds true negatives alone
        seen, true = one_hot(format, pred, target)
        stats = get_stats(seen.long(), true.long(), mode="multilabel")
    return iou_score(*stats, reduction="macro", zero_division=1.0).item()


def of_torchmetrics(format, pred, target):
    from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex, MultilabelJaccardIndex

    if not format.planes_are_bits:
        metric = MulticlassJaccardIndex(format.num_classes, average="macro", ignore_index=format.ignore_index)
        return metric(pred[:, 0].long(), target[:, 0].long()).item()
    if format.num_classes == 1:
        return BinaryJaccardIndex(ignore_index=format.ignore_index)(pred[:, 0], target[:, 0].long()).item()
    metric = MultilabelJaccardIndex(format.num_classes, average="macro", ignore_index=format.ignore_index)
    return metric(pred.long(), target.long()).item()


def of_monai(format, pred, target):
    metrics = pytest.importorskip("monai.metrics")
    metric = metrics.DiceMetric(include_background=True, reduction="mean")
    seen, true = one_hot(format, pred, target)
    metric(seen.float(), true.float())
    return metric.aggregate().item()


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.describe())
@pytest.mark.parametrize(("peer", "theirs"), [("smp", of_smp), ("torchmetrics", of_torchmetrics), ("monai", of_monai)])
def test_equal_to_the_installed_peer(format, peer, theirs):
    for seed in range(25):
        pred, target = draw(format, seed)
        ours = score_like(peer, counted(format, pred, target)).value
        assert ours == pytest.approx(theirs(format, pred, target), abs=1e-6), seed


def test_none_is_a_miss_for_smp_too():
    format = MaskFormat.multiclass(["sky", "road", "car"], "sigmoid", threshold=0.5)
    target = torch.randint(0, 3, (2, 1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    pred = target.clone()
    pred[:, :, 2:4] = format.ignore_index
    assert score_like("smp", counted(format, pred, target)).value == pytest.approx(of_smp(format, pred, target))


# For the formulas of toolkits that are not installed: pooled truth and prediction of each class, by hand.
#   target 1 1 2 2   pred 1 1 1 2     class 1: tp 2, fp 1, fn 0; class 2: tp 1, fp 0, fn 1
#          0 0 0 .        0 0 3 2     class 0: tp 2, fn 1; class 3: fp 1; class 4 is nowhere; . is ignored
TARGET = torch.tensor([[1, 1, 2, 2], [0, 0, 0, 255]], dtype=torch.uint8)[None, None]
PRED = torch.tensor([[1, 1, 1, 2], [0, 0, 3, 2]], dtype=torch.uint8)[None, None]


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("mmseg", (2 / 3 + 2 / 3 + 1 / 2 + 0) / 4),  # numpy.nanmean: class 4 is NaN
        ("paddleseg", (2 / 3 + 2 / 3 + 1 / 2 + 0 + 0) / 5),  # 0 where the union is empty
        ("ultralytics", (2 / 3 + 2 / 3 + 1 / 2) / 3),  # classes of the truth alone
        ("nnunet", None),  # numpy.mean over classes, one of which is in no case: NaN
    ],
)
def test_formulas_by_hand(peer, expected):
    value = score_like(peer, counted(EXCLUSIVE, PRED, TARGET)).value
    assert value == (None if expected is None else pytest.approx(expected))


def test_nnunet_by_hand():
    format = MaskFormat.multiclass(["background", "liver", "spleen", "kidney"])
    second = torch.zeros_like(TARGET)
    second[..., 0, :2] = 1
    pred = torch.cat([PRED, second])
    target = torch.cat([TARGET, torch.zeros_like(TARGET)])  # liver made up in the second case: 0; spleen is not there
    liver, spleen, kidney = (4 / 5 + 0) / 2, 2 / 3, 0.0
    value = score_like("nnunet", counted(format, pred, target)).value
    assert value == pytest.approx((liver + spleen + kidney) / 3)


def test_toolkits_of_exclusive_classes_see_background_in_binary_masks():
    target = torch.tensor([[1, 1, 0, 0, 0, 255]], dtype=torch.uint8)[None, None]
    pred = torch.tensor([[1, 0, 0, 0, 1, 1]], dtype=torch.uint8)[None, None]
    for peer in ("mmseg", "paddleseg", "ultralytics"):
        assert score_like(peer, counted(BINARY, pred, target)).value == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert score_like("smp", counted(BINARY, pred, target)).value == pytest.approx(1 / 3)


@pytest.mark.parametrize("peer", ["mmseg", "paddleseg", "ultralytics"])
def test_toolkits_of_exclusive_classes_have_no_number_for_overlap(peer):
    with pytest.raises(ValueError, match="may overlap"):
        score_like(peer, counted(OVERLAPPING, *draw(OVERLAPPING, 1)))


def test_no_truth_at_all():
    nothing = torch.zeros((2, 1, *SIZE), dtype=torch.uint8)
    counts = counted(BINARY, nothing, nothing)
    values = {peer: score_like(peer, counts).value for peer in PEERS}
    assert values == {
        "mmseg": 1.0,
        "smp": 1.0,
        "monai": 0.0,
        "nnunet": None,
        "torchmetrics": 0.0,
        "paddleseg": 0.5,
        "ultralytics": 1.0,
    }
    for theirs, peer in ((of_smp, "smp"), (of_torchmetrics, "torchmetrics"), (of_monai, "monai")):
        assert math.isclose(theirs(BINARY, nothing, nothing), values[peer])


def test_an_unknown_toolkit_is_named():
    with pytest.raises(ValueError, match="Did you mean `mmseg`"):
        score_like("mmsegm", counted(BINARY, *draw(BINARY, 0)))
