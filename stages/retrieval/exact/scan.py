"""The scan: documents that could be among a query's best, at the speed of matrix products.

`stages.retrieval.exact.search` scores them again, so rounding in a scan changes no result.
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
"""Largest relative error of rounding to bfloat16: half of the distance from 1 to the next number."""


class DocumentBlocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; each iteration starts at the first block."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


class ScanResult(NamedTuple):
    """The result of a scan for some queries [q, d]."""

    queries: Floats
    ids: Ints
    """The `width` best documents of each query (all if there are fewer), best first: [q, w]."""
    scores: Floats
    """Their scores in the scan. No other document has a higher score than the last one."""
    error_bound: npt.NDArray[np.float64]
    """Largest difference of a score from `pair_scores`, and largest excess of the `pair_scores` of other documents over
    the last score: [q]."""


def scan_batches(
    query_batches: Iterable[Floats],
    blocks: DocumentBlocks,
    width: int,
    executor: Executor,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[ScanResult]:
    """The `width` best documents of each query of each of `query_batches`, by scores with rounding errors.

    `dtype` is float32 or bfloat16.
    """
    make_scanner: Callable[[], Scanner]
    make_scanner = partial(CpuScanner, width, dtype) if device == "cpu" else partial(TorchScanner, width, device, dtype)
    batches, task_batches = tee(
        map(partial(_QueryBatchScan, width, _BFLOAT16_ROUNDING if dtype == "bfloat16" else 0.0), query_batches)
    )
    items = chain.from_iterable(map(part.make_task, blocks) for part in task_batches)
    block_results = executor.map(Worker(make_scanner, device), items)
    for part in batches:
        for _ in map(part.add_block, islice(block_results, len(blocks))):  # map keeps no reference to them
            pass
        yield part.finish()


class _QueryBatchScan:
    """Queries with their best documents in the blocks so far. `rounding` is the relative error of the scores' last
    rounding."""

    def __init__(self, width: int, rounding: float, queries: Floats) -> None:
        self._rounding = rounding / (1 - rounding)
        self._queries, self._hits = queries, np.full((len(queries), width), NO_HIT)
        self._n_documents, self._error_bound = 0, np.zeros(len(queries))

    def make_task(self, documents: Floats) -> ScanTask:
        """The task to scan a block. Its thresholds lag behind if several blocks are scanned at once."""
        return ScanTask(self._queries, documents, kth_scores(self._hits))

    def add_block(self, block: BlockTopK) -> None:
        """Merge the result of the next block."""
        for start in range(0, len(self._hits), TILE_SHAPE[0]):
            hits, block_hits = (rows[start : start + TILE_SHAPE[0]] for rows in (self._hits, block.hits))
            new_hits = np.where(block_hits == NO_HIT, NO_HIT, block_hits + np.uint64(self._n_documents))
            hits[:] = partition_top_k(np.concatenate([hits, new_hits], axis=1), hits.shape[1])
        self._n_documents += block.n_documents
        self._error_bound = np.maximum(self._error_bound, block.error_bound)

    def finish(self) -> ScanResult:
        """The result after all blocks. Call this once."""
        hits, self._hits = self._hits[:, : self._n_documents], np.empty((0, 0), np.uint64)
        hits.sort(axis=1)
        scores = unpack_scores(hits)
        # rounding keeps the order, so its error for a missing document is at most that of the last one
        return ScanResult(
            self._queries,
            unpack_documents(hits),
            scores,
            self._error_bound + self._rounding * np.abs(scores).max(axis=1, initial=0),
        )
