from __future__ import annotations

import pytest
import torch

from segkit.ops import counts
from segkit.ops.counts import count_binary, count_indices

IGNORED = 255


def _random_planes(classes: int, planes: int = 1, highest: int | None = None, shape=(3, 5, 7), dtype=torch.uint8):
    random = torch.Generator().manual_seed(classes)
    n, height, width = shape
    size = (n, planes, height, width)
    pred, target = (torch.randint(0, highest or classes, size, generator=random).to(dtype) for _ in "ab")
    target[torch.rand(size, generator=random) < 0.2] = IGNORED
    return pred, target


def _one_by_one(pred, target, values) -> torch.Tensor:
    """Pixel by pixel, in plain Python."""
    n, planes, height, width = pred.shape
    expected = torch.zeros((n, len(values), 4), dtype=torch.int64)
    for i in range(n):
        for c, value in enumerate(values):
            for y in range(height):
                for x in range(width):
                    p, t = (int(m[i, c if planes > 1 else 0, y, x]) for m in (pred, target))
                    if t != IGNORED:
                        kind = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
                        expected[i, c, kind[p == value, t == value]] += 1
    return expected


def test_index_counts_by_hand():
    #   target 1 1 0   pred 1 0 1   class 1: tp 1, fp 2, fn 1, tn 1
    #          0 0 ?        1 0 1   class 0: tp 1, fp 1, fn 2, tn 1
    target = torch.tensor([[1, 1, 0], [0, 0, IGNORED]], dtype=torch.uint8).view(1, 1, 2, 3)
    pred = torch.tensor([[1, 0, 1], [1, 0, 1]], dtype=torch.uint8).view(1, 1, 2, 3)
    found = count_indices(pred, target, 2, IGNORED)
    assert found.tolist() == [[[1, 1, 2, 1], [1, 2, 1, 1]]]
    assert found.dtype == torch.int64


def test_a_prediction_of_none_is_a_miss_and_no_false_alarm():
    pred, target = torch.tensor([[[[255, 0]]]], dtype=torch.uint8), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    assert count_indices(pred, target, 2, IGNORED).tolist() == [[[1, 0, 0, 1], [0, 0, 1, 1]]]


def test_a_negative_prediction_is_no_class():
    pred = torch.tensor([[[[-1, 1]]]], dtype=torch.int32)
    assert count_indices(pred, torch.ones((1, 1, 1, 2), dtype=torch.uint8), 2, IGNORED)[0, 1].tolist() == [1, 0, 1, 0]
    # Nor is a negative truth: what is predicted there is wrong.
    assert count_indices(-pred.abs() + 1, pred, 2, IGNORED).tolist() == [[[0, 2, 0, 0], [0, 0, 1, 1]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_index_counts_pixel_by_pixel(classes, dtype):
    # Also predictions of no class at all.
    pred, target = _random_planes(classes, highest=classes + 2, dtype=dtype)
    target.masked_fill_((target >= classes) & (target != IGNORED), 0)
    assert torch.equal(count_indices(pred, target, classes, IGNORED), _one_by_one(pred, target, range(classes)))


@pytest.mark.parametrize("classes", [1, 3])
def test_binary_counts_pixel_by_pixel(classes):
    pred, target = _random_planes(classes + 2, planes=classes, highest=2)
    assert torch.equal(count_binary(pred, target, IGNORED), _one_by_one(pred, target, [1] * classes))


def test_many_classes_are_counted_without_a_table_of_pairs(monkeypatch):
    pred, target = _random_planes(19)
    expected = count_indices(pred, target, 19, IGNORED)
    monkeypatch.setattr(counts, "_MAX_PAIR_CLASSES", 0)
    assert torch.equal(count_indices(pred, target, 19, IGNORED), expected)


@pytest.mark.parametrize("pixels", [1, 20, 10**9])
def test_comparing_with_every_class_counts_the_same(monkeypatch, pixels):
    """What devices without kernels of their own do."""
    monkeypatch.setattr(counts, "_MAP_PIXELS", pixels)
    pred, target = _random_planes(4, highest=6)
    target.masked_fill_((target >= 4) & (target != IGNORED), 0)
    maps = counts._count_maps(pred, target, torch.arange(4), IGNORED)
    assert torch.equal(maps, count_indices(pred, target, 4, IGNORED))
    pred, target = _random_planes(5, planes=3, highest=2)
    maps = counts._count_maps(pred, target, torch.ones(()), IGNORED)
    assert torch.equal(maps, count_binary(pred, target, IGNORED))


def test_agrees_with_smp_where_all_is_valid():
    metrics = pytest.importorskip("segmentation_models_pytorch").metrics
    pred, target = _random_planes(2, planes=3)
    target.masked_fill_(target == IGNORED, 1)
    expected = torch.stack(metrics.get_stats(pred.long(), target.long(), mode="multilabel"), dim=-1)
    assert torch.equal(count_binary(pred, target, IGNORED), expected)
    expected = torch.stack(metrics.get_stats(pred[:, 0].long(), target[:, 0].long(), "multiclass", num_classes=2), -1)
    assert torch.equal(count_indices(pred[:, :1], target[:, :1], 2, IGNORED), expected)


def test_memory_order_does_not_matter():
    pred, target = _random_planes(3)
    turned = [planes.mT.contiguous().mT for planes in (pred, target)]
    assert not turned[0].is_contiguous()
    assert torch.equal(count_indices(*turned, 3, IGNORED), count_indices(pred, target, 3, IGNORED))
    assert torch.equal(count_binary(*turned, IGNORED), count_binary(pred, target, IGNORED))


@pytest.mark.parametrize("size", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_no_pixels_count_nothing(size):
    empty = torch.zeros(size, dtype=torch.uint8)
    assert torch.equal(count_binary(empty, empty, IGNORED), torch.zeros((size[0], 3, 4), dtype=torch.int64))
    indices = count_indices(empty[:, :1], empty[:, :1], 2, IGNORED)
    assert torch.equal(indices, torch.zeros((size[0], 2, 4), dtype=torch.int64))


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    pred, target = _random_planes(4, shape=(2, 40, 50))
    on_gpu = count_indices(pred.cuda(), target.cuda(), 4, IGNORED)
    assert torch.equal(on_gpu.cpu(), count_indices(pred, target, 4, IGNORED))
