from __future__ import annotations

import os
import select
import threading

import pytest
import torch

from segkit.ops.loss_sums import PixelTerm, loss_sums
from segkit.ops.parallel import in_order
from segkit.ops.upsample import CoarseLogits
from tests.ops.test_loss_sums import KINDS, make_pair

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_compute_alone(threads):
    def work(item: int) -> tuple[int, str, int]:
        return item, threading.current_thread().name, torch.get_num_threads()

    found = list(in_order(work, range(20), CPU))
    assert [item for item, _, _ in found] == list(range(20))
    assert all(name.startswith("segkit-tiles") == (threads > 1) for _, name, _ in found)
    assert {alone for _, _, alone in found} == {1}
    assert torch.get_num_threads() == threads
    # A thread that starts later computes with as many threads as before.
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads]


def test_a_failure_reaches_the_caller(threads):
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("tile three")
        return item

    with pytest.raises(ValueError, match="tile three"):
        list(in_order(work, range(50), CPU))
    assert list(in_order(abs, [-1, 2], CPU)) == [1, 2]


def test_few_results_wait(threads):
    begun: list[int] = []

    def items():
        for item in range(100):
            begun.append(item)
            yield item

    results = in_order(abs, items(), CPU)
    next(results)
    assert len(begun) <= 2 * threads + 1
    results.close()


def test_a_fork_makes_threads_of_its_own(threads):
    """It has the parent's pool, but none of its threads: what it hands to them would wait for ever."""
    list(in_order(abs, [1, 2], CPU))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = [abs(item) for item in in_order(abs, [-1, -2, -3], CPU)]
        os.write(writer, bytes(found))
        os._exit(0)
    assert select.select([reader], [], [], 60)[0], "the fork hangs"
    assert os.read(reader, 10) == bytes([1, 2, 3])
    os.waitpid(child, 0)


def _loss_bits() -> bytes:
    values, full, target = make_pair(KINDS["softmax"], 5, (64, 64), factor=4, dtype=torch.float32)
    sums = loss_sums(CoarseLogits(values, full), target, KINDS["softmax"], PixelTerm())
    (gradient,) = torch.autograd.grad(sums.term + sums.both.sum(), values)
    return torch.cat([*(s.detach().flatten() for s in sums), gradient.flatten()]).numpy().tobytes()


def test_the_number_of_threads_changes_no_bit():
    before, found = torch.get_num_threads(), set()
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        found.add(_loss_bits())
    torch.set_num_threads(before)
    assert len(found) == 1
