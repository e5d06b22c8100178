"""Batches of what several clients ask at the same time: one worker thread, and a queue with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    key: Hashable
    arrived: float
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Gathers items that fit together and answers them in one call.

    The oldest item waits until a batch of its key is full, or until the deadline; while the worker computes, the next
    batch gathers, so that under load nobody waits for the deadline. A batch that fails is computed again item by
    item: one bad item, or a batch too large for the device, takes no other down.

    Args:
        run: answers of items of one key, in their order; called on one thread, one batch after the other.
        key: equal for items that can be answered together; None for one that is answered alone.
        batch_size: most items of one call.
        wait_s: deadline in seconds, from the arrival of the oldest item.
        observe: called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        key: Callable[[Item], Hashable | None],
        batch_size: int,
        wait_s: float,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._key, self._observe = run, key, observe
        self._batch_size, self._wait_s = batch_size, wait_s
        self._waiting: list[_Waiting[Item, Answer]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "segkit-model")
        self._task = asyncio.create_task(self._work())
        self._closing = False

    def __len__(self) -> int:
        """Number of items that wait."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether items are still answered."""
        return not self._task.done()

    async def answer(self, item: Item) -> Answer:
        """The answer of one item, or what `run` raised for it."""
        key = self._key(item)
        waiting = _Waiting(item, object() if key is None else key, time.monotonic(), _new_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def close(self) -> None:
        """Answer what waits, then end."""
        self._closing = True
        self._arrived.set()
        await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while not (self._closing and not self._waiting):
            # A client that left takes its item along.
            self._waiting = [waiting for waiting in self._waiting if not waiting.answer.done()]
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = await self._gather()
            for waiting in batch:
                self._waiting.remove(waiting)
            await self._answer(batch)

    async def _gather(self) -> list[_Waiting[Item, Answer]]:
        """The oldest item and those that fit, as many as came before its deadline."""
        oldest = self._waiting[0]
        while True:
            batch = [waiting for waiting in self._waiting if waiting.key == oldest.key][: self._batch_size]
            left = oldest.arrived + self._wait_s - time.monotonic()
            if len(batch) == self._batch_size or left <= 0 or self._closing:
                return batch
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    async def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._run, [waiting.item for waiting in batch])
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._answer([waiting])
                return
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self._observe(len(batch), time.monotonic() - started)
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def _new_future() -> asyncio.Future:
    return asyncio.get_running_loop().create_future()
