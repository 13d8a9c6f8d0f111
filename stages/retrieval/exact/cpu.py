"""The sweep on a CPU: as fast as it multiplies matrices, in float32 or bfloat16."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np
import numpy.typing as npt

from stages.embedding.vector_store import Floats
from stages.retrieval.exact.cpu_bfloat16 import Halves
from stages.retrieval.exact.scoring import longest, rounding
from stages.retrieval.exact.topk import TILE, Found, Item, Strip, passing, within_memory
from stages.retrieval.results import Ids
from stages.retrieval.topk_cache import NONE

_LIMITED = Lock()
"""Threads of libraries are limited for the whole process: two that did so at once would leave it limited."""
_LEAST_ROWS = 256
"""Queries that are worth a thread of their own."""


class Tiles:
    """A worker on the CPU.

    Method: tiles of the score matrix are computed, compared with the score that a document must beat, and forgotten.
    That score rises with what is found, so after the first few thousand documents hardly any passes, and a sweep takes
    little more than the products. Each thread has its own queries and multiplies alone.
    """

    def __init__(self, width: int, dtype: str) -> None:
        from threadpoolctl import ThreadpoolController

        self._width, self._half, self._controller = width, dtype == "bfloat16", ThreadpoolController()

    def __call__(self, item: Item) -> list[Found]:
        import faiss

        queries, documents, least = item
        best = np.full((len(queries), self._width), NONE)
        threads = faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), _LEAST_ROWS), TILE[0])
        strips = [slice(start, start + rows) for start in range(0, len(queries), rows)]
        with within_memory(item, "cpu"), self._pool(threads, max(1, threads // max(len(strips), 1))) as pool:
            cut = [slice(first, first + TILE[1]) for first in range(0, len(documents), TILE[1])]
            made = (Halves if self._half else _Singles)(queries, documents, cut, pool)

            def sweep(rows: slice) -> None:
                strip = Strip(best[rows], least[rows])
                for first, tile in made.tiles(rows):
                    strip.show(first, tile)
                strip.merge()

            for _ in pool.map(sweep, strips):
                pass
        return [Found(best, made.off, len(documents))]

    @contextmanager
    def _pool(self, threads: int, each: int) -> Iterator[ThreadPoolExecutor]:
        """So many threads, of which each multiplies by `each`."""
        with _LIMITED, self._controller.limit(limits=each, user_api="blas"), ExitStack() as after:
            if self._half:
                import torch

                after.callback(torch.set_num_threads, torch.get_num_threads())
                yield after.enter_context(ThreadPoolExecutor(threads, "", torch.set_num_threads, (each,)))
            else:
                yield after.enter_context(ThreadPoolExecutor(threads))


class _Singles:
    """The scores of some queries with a block of documents, in float32 by numpy."""

    def __init__(self, queries: Floats, documents: Floats, cut: list[slice], pool: ThreadPoolExecutor) -> None:
        self._queries, self._documents, self._cut = queries, documents, cut
        self.off = rounding(queries, max(pool.map(longest, (documents[part] for part in cut)), default=0.0))
        """How far each query's scores may lie from exact ones: [q]."""

    def tiles(self, rows: slice) -> Iterator[tuple[int, "_Dense"]]:
        """The scores of some queries, a tile at a time, and the place of its first document."""
        queries = self._queries[rows]
        scores, passes = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.bool_)
        for part in self._cut:
            documents = self._documents[part]
            if scores.shape[1] != len(documents):
                scores = np.empty((len(queries), len(documents)), np.float32)
                passes = np.empty(scores.shape, np.bool_)
            np.matmul(queries, documents.T, out=scores)
            yield part.start, _Dense(scores, passes)


class _Dense:
    """Scores [q, d] as an array, and room to compare them in."""

    def __init__(self, scores: Floats, passes: npt.NDArray[np.bool_]) -> None:
        self._scores, self._passes = scores, passes

    def above(self, enough: Floats) -> tuple[Ids, Ids, Floats] | None:
        np.greater(self._scores, enough[:, None], out=self._passes)
        places = passing(self._passes)
        if places is None:
            return None
        row, column = np.divmod(places, self._scores.shape[1])
        return row, column, self._scores.ravel()[places]

    def best(self, rows: slice, width: int) -> tuple[Ids, Floats]:
        return np.arange(self._scores.shape[1]), self._scores[rows]
