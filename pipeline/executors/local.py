"""This machine: one worker in this process; where it has several GPUs and the work is for them, one process each."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

from stages.core.errors import InputError
from stages.core.executor import InProcess, Item, Result, Worker

_AHEAD = 2
"""Items that each process has in hand, so that none waits for the next."""


class Local(InProcess):
    """The engine that is used unless another is named."""

    def map(self, worker: Worker[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the items' order."""
        gpus = visible_gpus() if worker.device == "cuda" else []
        return spread(worker, items, gpus) if len(gpus) > 1 else super().map(worker, items)


def visible_gpus() -> list[str]:
    """The GPUs that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def spread(worker: Worker[Item, Result], items: Iterable[Item], gpus: Iterable[str]) -> Iterator[Result]:
    """`Engine.map` by one process for each of `gpus`, which sees that one only; they take the items in turn.

    Raises `InputError` where one of them is ended from outside, which is what happens where memory runs out.
    """
    with ExitStack() as stack:
        stack.enter_context(_ended())
        context = multiprocessing.get_context("spawn")
        pools = [ProcessPoolExecutor(1, context, initializer=_begin, initargs=(gpu, worker)) for gpu in gpus]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        futures: deque[Future[list[Result]]] = deque()
        for pool, item in zip(cycle(pools), items):
            futures.append(pool.submit(_work, item))
            if len(futures) == _AHEAD * len(pools):
                yield from futures.popleft().result()
        while futures:
            yield from futures.popleft().result()


@contextmanager
def _ended() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            "a process that computed on one of the GPUs was ended from outside, as happens where this machine's memory "
            "runs out. What was done is kept. Free memory, or use fewer GPUs (CUDA_VISIBLE_DEVICES=0), and run again."
        ) from error


_worker: Worker[Any, Any]
_made: Callable[[Any], Iterable[Any]] | None = None


def _begin(gpu: str, worker: Worker[Any, Any]) -> None:
    global _worker
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _worker = worker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process waits for items for ever, also where the one that would give them was killed."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _work(item: Any) -> list[Any]:
    global _made
    _made = _made or _worker.make()  # here and not in _begin, so that what it raises gets to the caller
    return list(_made(item))
