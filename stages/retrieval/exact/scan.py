"""The scan: which documents could be among a query's best, as fast as matrices are multiplied.

What it finds is only whom to look at; `stages.retrieval.exact.search` scores it again, so nothing here shapes a result.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, tee
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Floats, Ints
from stages.core.executor import Executor, Worker
from stages.retrieval.exact.cpu import CpuScanner
from stages.retrieval.exact.gpu import TorchScanner
from stages.retrieval.exact.packed_hits import NO_HIT, unpack_documents, unpack_scores
from stages.retrieval.exact.topk import TILE_SHAPE, BlockTopK, Scanner, ScanTask, kth_scores, partition_top_k

_BFLOAT16_ROUNDING = 2.0**-8
"""The most, relatively, that rounding to bfloat16 changes a number: half of what lies between 1 and the next one."""


class DocumentBlocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; each iteration starts at the first block."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


class ScanResult(NamedTuple):
    """The result of a scan for some queries [q, d]."""

    queries: Floats
    ids: Ints
    """The `width` best documents of each query, or all where there are fewer, best first: [q, w]."""
    scores: Floats
    """Their scores as they were swept. What is not there scores at most as much as the last that is."""
    error_bound: npt.NDArray[np.float64]
    """How far a score of what is there may lie from that of `pair_scores`, and by how much this may surpass the last
    score of what is there, where it is of what is not: [q]."""


def scan_batches(
    query_batches: Iterable[Floats],
    blocks: DocumentBlocks,
    width: int,
    executor: Executor,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[ScanResult]:
    """The `width` best documents of each query of each of `query_batches`, by scores that rounding has touched.

    `dtype`, float32 or bfloat16, is what they are multiplied in.
    """
    make_scanner: Callable[[], Scanner]
    make_scanner = partial(CpuScanner, width, dtype) if device == "cpu" else partial(TorchScanner, width, device, dtype)
    batches, task_batches = tee(
        map(partial(_QueryBatchScan, width, _BFLOAT16_ROUNDING if dtype == "bfloat16" else 0.0), query_batches)
    )
    items = chain.from_iterable(map(part.make_task, blocks) for part in task_batches)
    block_results = executor.map(Worker(make_scanner, device), items)
    for part in batches:
        for _ in map(part.add_block, islice(block_results, len(blocks))):  # map holds on to none of them
            pass
        yield part.finish()


class _QueryBatchScan:
    """Queries, and the best documents of each in the blocks until now, by scores whose last rounding was by at most
    `rounding` of themselves."""

    def __init__(self, width: int, rounding: float, queries: Floats) -> None:
        self._rounding = rounding / (1 - rounding)
        self._queries, self._hits = queries, np.full((len(queries), width), NO_HIT)
        self._n_documents, self._error_bound = 0, np.zeros(len(queries))

    def make_task(self, documents: Floats) -> ScanTask:
        """Scan a block. If several are scanned at once, `least` may be of fewer blocks than it could be."""
        return ScanTask(self._queries, documents, kth_scores(self._hits))

    def add_block(self, block: BlockTopK) -> None:
        """Take in what the next block has."""
        for start in range(0, len(self._hits), TILE_SHAPE[0]):
            best, more = (made[start : start + TILE_SHAPE[0]] for made in (self._hits, block.hits))
            there = np.where(more == NO_HIT, NO_HIT, more + np.uint64(self._n_documents))
            best[:] = partition_top_k(np.concatenate([best, there], axis=1), best.shape[1])
        self._n_documents += block.n_documents
        self._error_bound = np.maximum(self._error_bound, block.error_bound)

    def finish(self) -> ScanResult:
        """What there is after all blocks; this is of no more use then."""
        hits, self._hits = self._hits[:, : self._n_documents], np.empty((0, 0), np.uint64)
        hits.sort(axis=1)
        scores = unpack_scores(hits)
        # rounding changes no order: it hides no more of what is not there than of the last that is
        return ScanResult(
            self._queries,
            unpack_documents(hits),
            scores,
            self._error_bound + self._rounding * np.abs(scores).max(axis=1, initial=0),
        )
