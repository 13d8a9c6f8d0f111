"""The sweep on a CPU in float32, by numpy: as fast as matrices are multiplied."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import numpy.typing as npt

from stages.retrieval.lists import NONE
from stages.retrieval.scores import lengths, rounding
from stages.retrieval.sources import Ids
from stages.retrieval.strip import MANY, TILE, Found, Item, Strip
from stages.retrieval.vectors import Floats

_LIMITED = Lock()
"""Threads of BLAS are limited for the whole process: two that did so at once would leave it limited."""
_LEAST_ROWS = 256
"""Queries that are worth a thread of their own."""


class Tiles:
    """A worker on the CPU.

    Method: tiles of the score matrix are computed, compared with the score that a document must beat, and forgotten.
    That score rises with what is found, so after the first few thousand documents hardly any passes, and a sweep takes
    little more than the products. Each thread has its own queries and multiplies alone.
    """

    def __init__(self, width: int) -> None:
        from threadpoolctl import ThreadpoolController

        self._width, self._controller = width, ThreadpoolController()

    def __call__(self, item: Item) -> list[Found]:
        import faiss

        queries, documents, least = item
        best = np.full((len(queries), self._width), NONE)
        threads = faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), _LEAST_ROWS), TILE[0])
        strips = [slice(start, start + rows) for start in range(0, len(queries), rows)]

        def sweep(strip: slice) -> None:
            self._sweep(Strip(best[strip], least[strip]), queries[strip], documents)

        each = max(1, threads // max(len(strips), 1))
        with _LIMITED, self._controller.limit(limits=each, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(sweep, strips):
                pass
        return [Found(best, rounding(queries, float(lengths(documents).max(initial=0))), len(documents))]

    def _sweep(self, strip: Strip, queries: Floats, documents: Floats) -> None:
        size = len(queries)
        scores, passes = np.empty((size, TILE[1]), np.float32), np.empty((size, TILE[1]), np.bool_)
        for first in range(0, len(documents), TILE[1]):
            part = documents[first : first + TILE[1]]
            if len(part) < TILE[1]:
                scores, passes = np.empty((size, len(part)), np.float32), np.empty((size, len(part)), np.bool_)
            np.matmul(queries, part.T, out=scores)
            strip.show(first, _Dense(scores, passes))
        strip.merge()


class _Dense:
    """Scores [q, d] as an array, and room to compare them in."""

    def __init__(self, scores: Floats, passes: npt.NDArray[np.bool_]) -> None:
        self._scores, self._passes = scores, passes

    def above(self, enough: Floats) -> tuple[Ids, Ids, Floats] | None:
        np.greater(self._scores, enough[:, None], out=self._passes)
        if np.count_nonzero(self._passes) > MANY * self._passes.size:
            return None
        places = np.flatnonzero(self._passes)
        row, column = np.divmod(places, self._scores.shape[1])
        return row, column, self._scores.ravel()[places]

    def best(self, rows: slice, width: int) -> tuple[Ids, Floats]:
        return np.arange(self._scores.shape[1]), self._scores[rows]
