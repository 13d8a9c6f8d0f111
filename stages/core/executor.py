"""The executor runs a stage's items of work in parallel. All executors give the same result."""

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
    """The device of a worker process: cpu, cuda, cuda:0, ..."""


class Executor(Protocol):
    """Runs the items of a stage on any machines; the stage knows nothing else of them."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """The results of the first item, then those of the second, and so on.

        Items are taken a few ahead of the results, so both may be endless streams. An exception of a worker is raised
        here. If a worker is lost, its items are repeated; their results appear once.
        """


class InProcessExecutor:
    """One worker, in this process."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """Process each item when its results are needed; items are not kept."""
        yield from chain.from_iterable(map(worker.factory(), items))


def batch_by_size(sizes: Sequence[int], max_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Group positions into batches of similar `sizes` with a sum of about `max_size`, largest first; the positions of a
    batch are ascending."""
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
