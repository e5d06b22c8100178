"""The queue alone, with a worker that the tests hold back: nothing here depends on how fast anything is."""

from __future__ import annotations

import asyncio
import threading

import pytest

from segkit.serving.batching import Batcher

LONG_S = 60.0


class Worker:
    """Answers numbers with their hundredfold once it is let; remembers its batches."""

    def __init__(self, held: bool = False, bad: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.started, self.let, self.bad = threading.Event(), threading.Event(), bad
        if not held:
            self.let.set()

    def __call__(self, numbers):
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(numbers))
        self.started.set()
        assert self.let.wait(LONG_S)
        if self.bad & set(numbers):
            raise ValueError(f"bad: {numbers}")
        return [100 * number for number in numbers]


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, LONG_S))


async def queued(batcher, count):
    while len(batcher) < count:
        await asyncio.sleep(0)


async def started(worker):
    while not worker.started.is_set():
        await asyncio.sleep(0.001)


def test_items_of_a_key_are_gathered_while_the_worker_computes():
    async def scenario():
        worker = Worker(held=True)
        batcher = Batcher(worker, key=lambda number: number % 2, batch_size=3, wait_s=0.0)
        first = asyncio.create_task(batcher.answer(0))
        await started(worker)
        rest = [asyncio.create_task(batcher.answer(number)) for number in (1, 2, 3, 4, 6, 8, 5)]
        await queued(batcher, 7)
        worker.let.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.close()
        return answers, worker

    answers, worker = run(scenario())
    assert answers == [0, 100, 200, 300, 400, 600, 800, 500]
    # The oldest first, with those of its key, at most three: no item waits behind younger ones of another key.
    assert worker.batches == [[0], [1, 3, 5], [2, 4, 6], [8]]
    assert len(worker.threads) == 1


def test_a_full_batch_does_not_wait_for_the_deadline():
    async def scenario():
        batcher = Batcher(Worker(), key=lambda number: 0, batch_size=2, wait_s=10 * LONG_S)
        answers = await asyncio.gather(batcher.answer(1), batcher.answer(2))
        await batcher.close()
        return answers

    assert run(scenario()) == [100, 200]


def test_the_deadline_ends_the_wait_for_others():
    async def scenario():
        worker = Worker()
        batcher = Batcher(worker, key=lambda number: 0, batch_size=8, wait_s=0.005)
        answer = await batcher.answer(1)
        await batcher.close()
        return answer, worker.batches

    assert run(scenario()) == (100, [[1]])


def test_an_item_without_key_is_a_batch_of_its_own():
    async def scenario():
        worker = Worker()
        batcher = Batcher(worker, key=lambda number: None, batch_size=8, wait_s=0.001)
        answers = await asyncio.gather(batcher.answer(1), batcher.answer(2))
        await batcher.close()
        return answers, worker.batches

    assert run(scenario()) == ([100, 200], [[1], [2]])


def test_a_bad_item_takes_no_other_down():
    async def scenario():
        seen = []
        worker = Worker(bad=frozenset({2}))
        batcher = Batcher(worker, lambda number: 0, 3, 10 * LONG_S, lambda size, seconds: seen.append(size))
        tasks = [batcher.answer(number) for number in (1, 2, 3)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return answers, worker.batches, seen

    answers, batches, seen = run(scenario())
    assert (answers[0], answers[2]) == (100, 300)
    assert isinstance(answers[1], ValueError)
    assert batches == [[1, 2, 3], [1], [2], [3]]
    assert seen == [1, 1]


def test_closing_answers_what_waits():
    async def scenario():
        worker = Worker(held=True)
        batcher = Batcher(worker, key=lambda number: 0, batch_size=2, wait_s=10 * LONG_S)
        tasks = [asyncio.create_task(batcher.answer(number)) for number in range(5)]
        await started(worker)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert batcher.is_alive
        worker.let.set()
        await closing
        assert not batcher.is_alive
        return [await task for task in tasks]

    assert run(scenario()) == [0, 100, 200, 300, 400]


def test_who_left_is_not_computed():
    async def scenario():
        worker = Worker(held=True)
        batcher = Batcher(worker, key=lambda number: 0, batch_size=1, wait_s=0.0)
        tasks = [asyncio.create_task(batcher.answer(number)) for number in (1, 2, 3)]
        await started(worker)
        tasks[1].cancel()
        await asyncio.sleep(0)
        worker.let.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return answers, worker.batches

    answers, batches = run(scenario())
    assert (answers[0], answers[2]) == (100, 300)
    assert batches == [[1], [3]]


@pytest.mark.parametrize("size", [1, 4])
def test_every_item_gets_its_own_answer(size):
    async def scenario():
        batcher = Batcher(Worker(), key=lambda number: number % 3, batch_size=size, wait_s=0.0)
        answers = await asyncio.gather(*(batcher.answer(number) for number in range(100)))
        await batcher.close()
        return answers

    assert run(scenario()) == [100 * number for number in range(100)]
