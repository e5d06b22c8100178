from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.metrics.counts import Counts, PixelCounts

BINARY = MaskFormat.binary("cell")
EXCLUSIVE = MaskFormat.multiclass(["sky", "road", "tree"])
PAIR = MaskFormat.multilabel(["liver", "tumour"])


def _planes(*images) -> torch.Tensor:
    """(N, 1, H, W) uint8 from one table per image."""
    return torch.tensor(images, dtype=torch.uint8).unsqueeze(1)


def _random_planes(seed: int, n: int = 3, highest: int = 2, ignored: float = 0.2):
    random = torch.Generator().manual_seed(seed)
    pred, target = (torch.randint(0, highest + 1, (n, 1, 5, 7), generator=random, dtype=torch.uint8) for _ in "ab")
    target[torch.rand(target.shape, generator=random) < ignored] = 255
    return pred, target


def _count(format: MaskFormat, pred, target) -> Counts:
    metric = PixelCounts(format)
    metric.update(pred, target)
    return metric.compute()


def test_exclusive_counts_by_hand():
    #   target 0 0 1   pred 0 1 1
    #          1 ? 2        0 2 2   (? is ignored)
    counts = _count(EXCLUSIVE, _planes([[0, 1, 1], [0, 2, 2]]), _planes([[0, 0, 1], [1, 255, 2]]))
    assert counts.rows.tolist() == [[[1, 1, 1, 2], [1, 1, 1, 2], [1, 0, 0, 4]]]
    assert counts.rows.dtype == torch.int64
    assert counts.format is EXCLUSIVE
    assert len(counts) == 1


def test_255_in_a_binary_target_counts_nowhere():
    """SMP get_stats on such a target: tp 2072, fp -2032."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    pred, target = _planes([[1, 1, 0, 1]]), _planes([[1, 0, 1, 255]])
    _, peer_fp, _, _ = smp.metrics.get_stats(pred.long(), target.long(), mode="binary")
    assert peer_fp.item() < 0
    assert _count(BINARY, pred, target).rows.tolist() == [[[1, 1, 1, 0]]]


def test_planes_are_ignored_one_by_one():
    pred = torch.tensor([[[1, 1]], [[1, 0]]], dtype=torch.uint8).unsqueeze(0)
    target = torch.tensor([[[1, 255]], [[0, 1]]], dtype=torch.uint8).unsqueeze(0)
    assert _count(PAIR, pred, target).rows.tolist() == [[[1, 0, 0, 0], [0, 1, 1, 0]]]


def test_none_is_a_miss_of_the_true_class_and_no_false_alarm():
    format = MaskFormat.multiclass(["sky", "road", "tree"], activation="sigmoid", threshold=0.5)
    logits = torch.tensor([[-1.0, 2.0], [-2.0, -1.0], [-3.0, -1.0]]).view(1, 3, 1, 2)
    pred = format.decode(logits)
    assert pred.flatten().tolist() == [255, 0]
    counts = _count(format, pred, _planes([[1, 0]]))
    assert counts.rows.tolist() == [[[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 2]]]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_stat_scores

    pred, target = _random_planes(seed)
    expected = multiclass_stat_scores(
        pred[:, 0].long(), target[:, 0].long(), 3, average=None, multidim_average="samplewise", ignore_index=255
    )
    # torchmetrics orders tp, fp, tn, fn, support
    assert torch.equal(_count(EXCLUSIVE, pred, target).rows, expected[..., [0, 1, 3, 2]])


def test_counts_are_never_negative_and_add_up_to_valid_pixels():
    pred, target = _random_planes(7)
    pred[0] = 255
    rows = _count(EXCLUSIVE, pred, target).rows
    assert (rows >= 0).all()
    assert torch.equal(rows.sum(-1), (target != 255).sum((2, 3)).expand(3, 3))


def test_images_of_different_sizes_keep_a_row_each():
    metric = PixelCounts(EXCLUSIVE)
    metric.update(_planes([[0, 1]], [[2, 2]]), _planes([[0, 1]], [[2, 1]]))
    metric.update(_planes([[0], [0], [0]]), _planes([[0], [0], [1]]))
    counts = metric.compute()
    assert counts.rows[:, :, 0].tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]
    assert counts.indices.tolist() == [-1, -1, -1]


def test_ids_above_255():
    format = MaskFormat.multiclass(range(300))
    target = torch.tensor([280, 24, 65535], dtype=torch.int32).view(1, 1, 1, 3)
    rows = _count(format, torch.tensor([280, 280, 3], dtype=torch.int32).view(1, 1, 1, 3), target).rows
    assert rows[0, 280].tolist() == [1, 1, 0, 0]
    assert rows[0, 24].tolist() == [0, 0, 1, 1]
    assert rows[0, 3].tolist() == [0, 0, 0, 2]


def test_images_stand_in_the_order_of_their_numbers_and_count_once():
    pred, target = _random_planes(5)
    expected = _count(EXCLUSIVE, pred, target).rows
    metric = PixelCounts(EXCLUSIVE)
    metric.update(pred[[2, 0]], target[[2, 0]], indices=[2, 0])
    metric.update(pred[[1, 2]], target[[1, 2]], indices=torch.tensor([1, 2]))  # padding hands out image 2 again
    counts = metric.compute()
    assert counts.indices.tolist() == [0, 1, 2]
    assert torch.equal(counts.rows, expected)


def test_two_images_under_one_number_are_refused():
    metric = PixelCounts(EXCLUSIVE)
    metric.update(_planes([[0, 1]]), _planes([[0, 1]]), indices=[4])
    metric.update(_planes([[0, 0]]), _planes([[0, 1]]), indices=[4])  # another prediction of the same image is fine
    assert metric.compute().rows[0, 0].tolist() == [1, 0, 0, 1]
    metric.update(_planes([[0, 1]]), _planes([[1, 1]]), indices=[4])
    with pytest.raises(ValueError, match="image number 4 was counted twice with different truths"):
        metric.compute()


@pytest.mark.parametrize(
    ("pred", "target", "indices", "message"),
    [
        (torch.zeros(1, 3, 2, 4), torch.zeros((1, 1, 2, 4), dtype=torch.uint8), None, r"pred has .*format\.decode"),
        (torch.zeros(1, 1, 2, 4), torch.zeros((1, 1, 2, 4), dtype=torch.uint8), None, r"pred is torch\.float32"),
        (torch.zeros((1, 1, 4, 2), dtype=torch.uint8), torch.zeros((1, 1, 2, 4), dtype=torch.uint8), None, "pred has"),
        (torch.zeros((1, 2, 4), dtype=torch.uint8), torch.zeros((1, 2, 4), dtype=torch.uint8), None, "pred has shape"),
        (torch.zeros((1, 1, 2, 4), dtype=torch.uint8), torch.zeros((1, 1, 2, 4)), None, r"target is torch\.float32"),
        (*_random_planes(0), [1, 2], r"indices have shape \(2,\), expected \(3,\)"),
    ],
)
def test_what_is_no_mask_is_refused(pred, target, indices, message):
    with pytest.raises(ValueError, match=message):
        PixelCounts(EXCLUSIVE).update(pred, target, indices)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_no_image():
    counts = PixelCounts(EXCLUSIVE).compute()
    assert (counts.rows.shape, counts.indices.shape, len(counts)) == ((0, 3, 4), (0,), 0)
    empty = torch.zeros((0, 1, 5, 7), dtype=torch.uint8)
    assert _count(EXCLUSIVE, empty, empty).rows.shape == (0, 3, 4)


def test_one_image_and_one_class_keep_their_shape():
    # torchmetrics squeezes tensors of one element where it finds them.
    counts = _count(BINARY, _planes([[1, 0]]), _planes([[1, 1]]))
    assert (counts.rows.shape, counts.indices.shape) == ((1, 1, 4), (1,))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_carry_what_was_counted_and_go_their_own_way(twin):
    pred, target = _random_planes(3)
    metric = PixelCounts(EXCLUSIVE)
    metric.update(pred, target)
    other = twin(metric)
    other.update(pred[:1], target[:1])
    assert (len(metric.compute()), len(other.compute())) == (3, 4)
    assert torch.equal(other.compute().rows[:3], metric.compute().rows)
    metric.reset()
    metric.update(pred[:2], target[:2])
    assert len(metric.compute()) == 2


def test_forward_gives_the_batch_and_keeps_the_sum():
    pred, target = _random_planes(3)
    metric = PixelCounts(EXCLUSIVE)
    metric(pred[:2], target[:2], indices=[5, 6])
    batch = metric(pred[2:], target[2:], indices=[4])
    assert batch.indices.tolist() == [4]
    assert metric.compute().indices.tolist() == [4, 5, 6]


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    pred, target = _random_planes(3)
    metric = PixelCounts(EXCLUSIVE).cuda()
    metric.update(pred.cuda(), target.cuda(), indices=[0, 1, 2])
    counts = metric.compute()
    assert counts.rows.device.type == counts.indices.device.type == "cpu"
    assert torch.equal(counts.rows, _count(EXCLUSIVE, pred, target).rows)


# Uneven shares with an image handed out twice, a process without any image, nobody with an image.
_SHARES = [([0, 2, 3], [1, 0]), ([0, 1], []), ([], [])]

_RANK = """
import sys, torch
import torch.distributed as dist
from segkit.formats.mask_format import MaskFormat
from segkit.metrics.counts import PixelCounts

rank, rendezvous, shares, out = int(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=2)
found = []
for images in shares:
    metric = PixelCounts(MaskFormat.multiclass(["sky", "road", "tree"]))
    for i in images[rank]:
        random = torch.Generator().manual_seed(i)
        pred, target = (torch.randint(0, 3, (1, 1, 4 + i, 6), generator=random, dtype=torch.uint8) for _ in "ab")
        metric.update(pred, target, indices=[i])
    first = metric.compute()
    one_more = torch.zeros((1, 1, 2, 3), dtype=torch.uint8)
    metric.update(one_more, one_more, indices=[100 + rank])
    again = metric.compute()
    found.append((first.rows, first.indices, again.rows, again.indices))
torch.save(found, out)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> list[list[tuple]]:
    """For each process what it computed of each case of `_SHARES`."""
    folder = tmp_path_factory.mktemp("two_processes")
    outs = [folder / f"rank{rank}.pt" for rank in range(2)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(folder / "rendezvous"), repr(_SHARES), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return [torch.load(out) for out in outs]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("case", range(len(_SHARES)), ids=str)
def test_two_processes_join_exactly(joined, case):
    all_images = sorted({i for share in _SHARES[case] for i in share})
    metric = PixelCounts(EXCLUSIVE)
    for i in all_images:
        random = torch.Generator().manual_seed(i)
        metric.update(*(torch.randint(0, 3, (1, 1, 4 + i, 6), generator=random, dtype=torch.uint8) for _ in "ab"))
    expected = metric.compute().rows
    for rank in joined:
        rows, indices, more_rows, more_indices = rank[case]
        assert indices.tolist() == all_images
        assert torch.equal(rows, expected)
        # Joining left each process its own share, so counting goes on.
        assert more_indices.tolist() == [*all_images, 100, 101]
        assert torch.equal(more_rows[: len(rows)], expected)
