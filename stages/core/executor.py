"""An engine: where a stage's items of work are done, and by how many at once. The result is the same by every one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Worker(Generic[Item, Result]):
    """What does the work, in whichever process on whichever machine. It, items and results can be pickled."""

    make: Callable[[], Callable[[Item], Iterable[Result]]]
    """Called once in each process that works: loads what is dear, and gives what is then called with each item."""
    device: str = "cpu"
    """What one such process computes on: cpu, cuda, cuda:0, ..."""


class Engine(Protocol):
    """The one thing that a stage knows of the machines behind it."""

    def map(self, worker: Worker[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of the first item, then those of the second, and so on.

        Items are taken a few ahead of the results, so both may be endless streams. What a worker raises is raised here.
        An item whose worker is lost is done again; its results come once.
        """


class InProcess:
    """One worker, in this process."""

    def map(self, worker: Worker[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """Each item when its results are asked for; none is held on to once its results are there."""
        yield from chain.from_iterable(map(worker.make(), items))


def pieces(sizes: Sequence[int], most: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cut work into items of like parts: the places of parts whose `sizes` come to about `most`, the largest parts'
    first; the places of an item rise."""
    given = np.asarray(sizes, np.int64)
    order = np.argsort(-given, kind="stable")
    before = np.cumsum(given[order]) - given[order]
    for places in np.split(order, np.flatnonzero(np.diff(before // most)) + 1):
        yield np.sort(places)
