from __future__ import annotations

import threading
import time

import pytest

from segkit.inference.pipeline import AHEAD, run_pipeline


def test_results_come_in_the_order_of_the_batches_however_long_each_takes():
    def read(item):
        time.sleep(0.01 * (item % 3))
        return item * 10

    def write(item, answer):
        time.sleep(0.01 * (2 - item % 3))
        return item, answer

    batches = [[0, 1, 2], [3], [4, 5], [6, 7, 8]]
    found = list(run_pipeline(batches, read, lambda values: [v + 1 for v in values], write, threads=4))
    assert found == [[(item, 10 * item + 1) for item in batch] for batch in batches]


def test_reading_and_writing_go_on_while_a_batch_is_answered():
    """Each step waits for what could not happen if steps took turns."""
    read_next, written_before = threading.Event(), threading.Event()

    def read(item):
        if item == 2:
            read_next.set()
        return item

    def answer(values):
        if values == [1]:
            assert read_next.wait(60)  # batch 2 is read while 1 is answered
            assert written_before.wait(60)  # and batch 0 is written
        return values

    def write(item, value):
        if item == 0:
            written_before.set()
        return item

    assert list(run_pipeline([[0], [1], [2]], read, answer, write, threads=1)) == [[0], [1], [2]]


def test_few_batches_wait_for_a_slow_disk():
    open_now = threading.Event()
    answered = []

    def write(item, value):
        assert open_now.wait(60)
        return item

    def answer(values):
        answered.append(values)
        if len(answered) == AHEAD + 1:
            open_now.set()
        return values

    def read(item):
        # Of the batches that are not written, so many are known: none is read for later.
        assert item <= len(answered) + AHEAD
        return item

    assert len(list(run_pipeline(([n] for n in range(9)), read, answer, write, threads=2))) == 9
    assert len(answered) == 9


def test_a_stop_finishes_what_was_begun():
    answered = []

    def answer(values):
        answered.extend(values)
        return values

    found = list(run_pipeline([[n] for n in range(9)], int, answer, lambda n, v: v, stopped=lambda: len(answered) >= 3))
    assert found == [[0], [1], [2]]


@pytest.mark.parametrize("step", ["read", "answer", "write"])
def test_an_error_comes_after_the_batches_before_it_and_ends_the_threads(step):
    def failing(name):
        def call(*values):
            if name == step and 4 in (values[0] if name == "answer" else values):
                raise OSError(name)
            return values[0]

        return call

    before = threading.active_count()
    found = []
    running = run_pipeline([[0, 1], [2, 3], [4, 5], [6]], *map(failing, ("read", "answer", "write")))
    with pytest.raises(OSError, match=step):
        found.extend(running)
    # What is answered before an error of reading may still be on its way to the disk.
    assert found == [[0, 1], [2, 3]][: len(found)]
    assert step != "write" or len(found) == 2
    assert threading.active_count() == before
