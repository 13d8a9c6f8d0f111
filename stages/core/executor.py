"""The executor runs a stage's items of work, several at once. Every executor gives the same result."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Worker(Generic[ItemT, ResultT]):
    """The work of an executor, in any process on any machine. The worker, items and results must be picklable."""

    factory: Callable[[], Callable[[ItemT], Iterable[ResultT]]]
    """Called once in each worker process: loads models, and returns the function that is called with each item."""
    device: str = "cpu"
    """What one such process computes on: cpu, cuda, cuda:0, ..."""


class Executor(Protocol):
    """The one thing that a stage knows of the machines behind it."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """The results of the first item, then those of the second, and so on.

        Items are taken a few ahead of the results, so both may be endless streams. What a worker raises is raised here.
        An item whose worker is lost is done again; its results come once.
        """


class InProcessExecutor:
    """One worker, in this process."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """Process each item when its results are needed; no item is kept after that."""
        yield from chain.from_iterable(map(worker.factory(), items))


def batch_by_size(sizes: Sequence[int], max_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cut work into items of like parts: the places of parts whose `sizes` come to about `max_size`, the largest parts'
    first; the places of an item rise."""
    size_array = np.asarray(sizes, np.int64)
    order = np.argsort(-size_array, kind="stable")
    offsets = np.cumsum(size_array[order]) - size_array[order]
    for indices in np.split(order, np.flatnonzero(np.diff(offsets // max_size)) + 1):
        yield np.sort(indices)


def exit_with_parent() -> None:
    """End this process when its parent ends. Run it in a daemon thread: a killed parent can't end its children."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
