from __future__ import annotations

import pytest
import torch

from segkit.ops.counts import count_pixels


def _random_maps(shape, valid_shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    pred, truth = (torch.rand(shape, generator=random) < 0.4 for _ in range(2))
    return pred, truth, torch.rand(valid_shape, generator=random) < 0.8


def test_counts_by_hand():
    #   target 1 1 0   pred 1 0 1   tp 1, fp 2, fn 1, tn 1
    #          0 0 ?        1 0 1
    truth = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool().view(1, 1, 2, 3)
    pred = torch.tensor([[1, 0, 1], [1, 0, 1]]).bool().view(1, 1, 2, 3)
    valid = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool().view(1, 1, 2, 3)
    counts = count_pixels(pred, truth, valid)
    assert counts.tolist() == [[[1, 2, 1, 1]]]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("valid_planes", [1, 3])
def test_counts_pixel_by_pixel(valid_planes):
    pred, truth, valid = _random_maps((2, 3, 4, 5), (2, valid_planes, 4, 5))
    counts = count_pixels(pred, truth, valid)
    assert counts.shape == (2, 3, 4)
    assert torch.equal(counts.sum(-1), valid.expand_as(pred).sum((2, 3)))
    expected = torch.zeros_like(counts)
    for n, c, y, x in torch.cartesian_prod(*(torch.arange(s) for s in pred.shape)).tolist():
        if valid[n, min(c, valid_planes - 1), y, x]:
            p, t = bool(pred[n, c, y, x]), bool(truth[n, c, y, x])
            expected[n, c, {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[p, t]] += 1
    assert torch.equal(counts, expected)


def test_agrees_with_smp_where_all_is_valid():
    metrics = pytest.importorskip("segmentation_models_pytorch").metrics
    pred, truth, _ = _random_maps((3, 2, 6, 5), (3, 1, 6, 5))
    expected = torch.stack(metrics.get_stats(pred.long(), truth.long(), mode="multilabel"), dim=-1)
    assert torch.equal(count_pixels(pred, truth, torch.ones((3, 1, 6, 5), dtype=torch.bool)), expected)


def test_memory_order_does_not_matter():
    maps = _random_maps((2, 3, 4, 5), (2, 1, 4, 5))
    turned = [m.mT.contiguous().mT for m in maps]
    assert not turned[0].is_contiguous()
    assert torch.equal(count_pixels(*turned), count_pixels(*maps))


@pytest.mark.parametrize("size", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_no_pixels_count_nothing(size):
    empty = torch.zeros(size, dtype=torch.bool)
    counts = count_pixels(empty, empty, empty[:, :1])
    assert torch.equal(counts, torch.zeros((size[0], 3, 4), dtype=torch.int64))


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    maps = _random_maps((2, 3, 40, 50), (2, 1, 40, 50))
    assert torch.equal(count_pixels(*(m.cuda() for m in maps)).cpu(), count_pixels(*maps))
