"""The scan on a CPU, in float32 or bfloat16."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Floats, Ints
from stages.retrieval.exact.cpu_bfloat16 import Bfloat16Scorer
from stages.retrieval.exact.packed_hits import NO_HIT
from stages.retrieval.exact.scoring import float32_error_bound, max_norm
from stages.retrieval.exact.topk import (
    TILE_SHAPE,
    BlockTopK,
    ScanTask,
    TopKBuffer,
    find_sparse_hits,
    translate_oom_errors,
)

_THREAD_LIMIT_LOCK = Lock()
"""The thread limits of libraries are global: two scans that set them at once would not restore them."""
_MIN_QUERIES_PER_THREAD = 256
"""Least queries of a thread."""


class CpuScanner:
    """A worker on the CPU.

    Method: tiles of the score matrix are computed, compared with the k-th best score so far, and dropped. That score
    rises, so after the first few thousand documents few scores pass, and a scan takes little more time than the matrix
    products. Each thread has other queries.
    """

    def __init__(self, width: int, dtype: str) -> None:
        from threadpoolctl import ThreadpoolController

        self._width, self._use_bfloat16, self._controller = width, dtype == "bfloat16", ThreadpoolController()

    def __call__(self, task: ScanTask) -> list[BlockTopK]:
        import faiss

        queries, documents, thresholds = task
        hits = np.full((len(queries), self._width), NO_HIT)
        threads = faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), _MIN_QUERIES_PER_THREAD), TILE_SHAPE[0])
        query_slices = [slice(start, start + rows) for start in range(0, len(queries), rows)]
        with (
            translate_oom_errors(task, "cpu"),
            self._thread_pool(threads, max(1, threads // max(len(query_slices), 1))) as pool,
        ):
            tile_slices = [slice(first, first + TILE_SHAPE[1]) for first in range(0, len(documents), TILE_SHAPE[1])]
            scorer = (Bfloat16Scorer if self._use_bfloat16 else _Float32Scorer)(queries, documents, tile_slices, pool)

            def scan_queries(rows: slice) -> None:
                buffer = TopKBuffer(hits[rows], thresholds[rows])
                for first_document, tile in scorer.score_tiles(rows):
                    buffer.update(first_document, tile)
                buffer.flush()

            for _ in pool.map(scan_queries, query_slices):
                pass
        return [BlockTopK(hits, scorer.error_bound, len(documents))]

    @contextmanager
    def _thread_pool(self, n_threads: int, blas_threads: int) -> Iterator[ThreadPoolExecutor]:
        """`n_threads` threads; each uses `blas_threads` for matrix products."""
        with _THREAD_LIMIT_LOCK, self._controller.limit(limits=blas_threads, user_api="blas"), ExitStack() as after:
            if self._use_bfloat16:
                import torch

                after.callback(torch.set_num_threads, torch.get_num_threads())
                yield after.enter_context(ThreadPoolExecutor(n_threads, "", torch.set_num_threads, (blas_threads,)))
            else:
                yield after.enter_context(ThreadPoolExecutor(n_threads))


class _Float32Scorer:
    """The scores of some queries with a block of documents, in float32 by numpy.

    Not by faiss.knn: from 1,000 queries on, the search took 1.1 times the processor time with a call for each thread's
    queries, and 1.5 to 2.3 times with a call a block, on a busy machine with AVX2 (docs/benchmarks.md).
    """

    def __init__(self, queries: Floats, documents: Floats, tile_slices: list[slice], pool: ThreadPoolExecutor) -> None:
        self._queries, self._documents, self._tile_slices = queries, documents, tile_slices
        self.error_bound = float32_error_bound(
            queries, max(pool.map(max_norm, (documents[part] for part in tile_slices)), default=0.0)
        )
        """Largest difference of each query's scores from `pair_scores`: [q]."""

    def score_tiles(self, rows: slice) -> Iterator[tuple[int, "_Float32Tile"]]:
        """The scores of some queries, tile by tile, with the position of its first document."""
        queries = self._queries[rows]
        scores, passes = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.bool_)
        for part in self._tile_slices:
            documents = self._documents[part]
            if scores.shape[1] != len(documents):
                scores = np.empty((len(queries), len(documents)), np.float32)
                passes = np.empty(scores.shape, np.bool_)
            np.matmul(queries, documents.T, out=scores)
            yield part.start, _Float32Tile(scores, passes)


class _Float32Tile:
    """Scores [q, d], and a buffer for comparisons."""

    def __init__(self, scores: Floats, passes: npt.NDArray[np.bool_]) -> None:
        self._scores, self._passes = scores, passes

    def select_above(self, thresholds: Floats) -> tuple[Ints, Ints, Floats] | None:
        np.greater(self._scores, thresholds[:, None], out=self._passes)
        indices = find_sparse_hits(self._passes)
        if indices is None:
            return None
        row, column = np.divmod(indices, self._scores.shape[1])
        return row, column, self._scores.ravel()[indices]

    def select_top_k(self, rows: slice, k: int) -> tuple[Ints, Floats]:
        return np.arange(self._scores.shape[1]), self._scores[rows]
