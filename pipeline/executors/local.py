"""This machine: one worker in this process, or one process for each GPU if several can do the work."""

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
from stages.core.executor import InProcessExecutor, ItemT, ResultT, Worker, exit_with_parent

_ITEMS_PER_PROCESS = 2
"""Items queued for each process, so that none waits."""


class LocalExecutor(InProcessExecutor):
    """The default executor."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """The results in the items' order."""
        gpus = list_visible_gpus() if worker.device == "cuda" else []
        return map_on_gpus(worker, items, gpus) if len(gpus) > 1 else super().map(worker, items)


def list_visible_gpus() -> list[str]:
    """The GPUs that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def map_on_gpus(worker: Worker[ItemT, ResultT], items: Iterable[ItemT], gpus: Iterable[str]) -> Iterator[ResultT]:
    """`Executor.map` by one process for each of `gpus`, which sees only that GPU; they take the items in turn.

    Raises `InputError` if one of the processes is killed, which happens when memory runs out.
    """
    with ExitStack() as stack:
        stack.enter_context(_translate_broken_pool())
        context = multiprocessing.get_context("spawn")
        pools = [
            ProcessPoolExecutor(1, context, initializer=_initialise_process, initargs=(gpu, worker)) for gpu in gpus
        ]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        futures: deque[Future[list[ResultT]]] = deque()
        for pool, item in zip(cycle(pools), items):
            futures.append(pool.submit(_run_item, item))
            if len(futures) == _ITEMS_PER_PROCESS * len(pools):
                yield from futures.popleft().result()
        while futures:
            yield from futures.popleft().result()


@contextmanager
def _translate_broken_pool() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            "a process that computed on one of the GPUs was killed, which happens when this machine's memory runs out. "
            "Finished work is kept. Free memory, or use fewer GPUs (CUDA_VISIBLE_DEVICES=0), and run again."
        ) from error


_worker: Worker[Any, Any]
_worker_function: Callable[[Any], Iterable[Any]] | None = None


def _initialise_process(gpu: str, worker: Worker[Any, Any]) -> None:
    global _worker
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _worker = worker
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run_item(item: Any) -> list[Any]:
    global _worker_function
    # made here and not in _initialise_process, so that what it raises reaches the caller
    _worker_function = _worker_function or _worker.factory()
    return list(_worker_function(item))
