"""Where the batches of a job are computed: in this process, or wherever else a `Compute` takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from segkit.inference.batches import BatchWork, Item, Outcome
from segkit.inference.pipeline import run_pipeline

# Its number in the job, and what it holds.
Batch = tuple[int, Sequence[Item]]


@dataclass(frozen=True)
class Computed:
    """A batch of which all is written.

    Attributes:
        batch: its number.
        outcomes: of each item.
        together: images that were answered at once, where fewer than a batch fit into memory.
    """

    batch: int
    outcomes: list[Outcome]
    together: int | None = None


class Compute(Protocol):
    """Does the batches of a job."""

    def __call__(self, work: BatchWork, batches: Iterator[Batch], stopped: Callable[[], bool]) -> Iterator[Computed]:
        """Each batch once all of it is written, in any order.

        Args:
            work: what is done with a batch.
            stopped: once it is True no other batch is begun, and those that were are finished.

        Raises:
            OSError: masks cannot be written.
        """


def compute_here(work: BatchWork, batches: Iterator[Batch], stopped: Callable[[], bool]) -> Iterator[Computed]:
    """In this process, one batch after the other, of which the next are read and the last written meanwhile."""
    begun: deque[int] = deque()

    def members() -> Iterator[Sequence[Item]]:
        for number, items in batches:
            begun.append(number)
            yield items

    for outcomes in run_pipeline(members(), work.read, work.answer, work.write, stopped=stopped):
        yield Computed(begun.popleft(), outcomes, work.together)
