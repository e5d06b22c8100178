"""The kernels against comparing whole planes: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from segkit.ops import counts, counts_triton
from segkit.ops.counts import count_binary, count_indices
from tests.ops import kernels

pytestmark = kernels.MARKS
IGNORED = 255


@pytest.fixture(autouse=True)
def only_kernels(monkeypatch):
    """The kernels are what is dispatched to, and the definition cannot run."""
    for name in ("_count_index_image", "_count_binary_plane", "_count_maps"):
        monkeypatch.setattr(counts, name, None)
    if not kernels.ON_GPU:
        monkeypatch.setattr(counts, "runs_triton", lambda _: True)


@pytest.fixture(params=[(1024, 256), (128, 2)], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Pixels of a block, and programs."""
    monkeypatch.setattr(counts_triton, "_PIXELS", request.param[0])
    monkeypatch.setattr(counts_triton, "_INDEX_PROGRAMS", request.param[1])
    monkeypatch.setattr(counts_triton, "_BINARY_PROGRAMS", request.param[1])


def random_planes(highest: int, planes: int = 1, dtype=torch.uint8):
    random = torch.Generator().manual_seed(highest)
    size = (3, planes, 23, 29)
    pred, target = (torch.randint(0, highest, size, generator=random).to(dtype) for _ in "ab")
    target[torch.rand(size, generator=random) < 0.2] = IGNORED
    return pred, target


def expect(pred, target, values) -> torch.Tensor:
    """(N, C, 4) by comparing planes with the value of each class."""
    values = torch.tensor(values).view(1, -1, 1, 1)
    valid, p, t = target != IGNORED, pred == values, target == values
    return torch.stack([(m & valid).sum((2, 3)) for m in (p & t, p & ~t, ~p & t, ~p & ~t)], -1)


def on_device(*planes):
    return [p.to(kernels.DEVICE) for p in planes]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("classes", [1, 2, 150])
def test_index_counts(classes, dtype):
    # Also predictions of no class, which are misses.
    pred, target = random_planes(classes + 2, dtype=dtype)
    target.masked_fill_((target >= classes) & (target != IGNORED), 0)
    found = count_indices(*on_device(pred, target), classes, IGNORED)
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), expect(pred, target, range(classes)))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("planes", [1, 3])
def test_binary_counts(planes):
    pred, target = random_planes(2, planes)
    found = count_binary(*on_device(pred, target), IGNORED)
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), expect(pred, target, [1] * planes))


def test_memory_order_does_not_matter():
    pred, target = random_planes(3)
    turned = [p.mT.contiguous().mT for p in on_device(pred, target)]
    assert torch.equal(count_indices(*turned, 3, IGNORED).cpu(), expect(pred, target, range(3)))
    assert torch.equal(
        count_indices(turned[0], target.to(kernels.DEVICE), 3, IGNORED).cpu(), expect(pred, target, range(3))
    )
    assert torch.equal(count_binary(*turned, IGNORED).cpu(), expect(pred, target, [1]))


@pytest.mark.gpu
def test_the_device_is_not_waited_for():
    planes = on_device(*random_planes(2))
    for mode in ("default", "error"):  # the first run compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            count_indices(*planes, 2, IGNORED)
            count_binary(*planes, IGNORED)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_all_ignored_counts_nothing():
    pred, target = random_planes(3)
    planes = on_device(pred, target.fill_(IGNORED))
    assert (count_indices(*planes, 3, IGNORED) == 0).all()
    assert (count_binary(*planes, IGNORED) == 0).all()
