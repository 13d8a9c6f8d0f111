"""The sweep: which documents could be among a query's best, by float32 scores, as fast as matrices are multiplied.

What it finds is only whom to look at; `stages.retrieval.nearest` scores it again, so nothing here shapes a result.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, tee
from typing import Any, NamedTuple, Protocol

import numpy as np

from stages.engine import Engine, Worker
from stages.errors import InputError
from stages.retrieval.lists import NONE, Entries, entries, places_of, scores_of
from stages.retrieval.scores import lengths
from stages.retrieval.sources import Ids
from stages.retrieval.vectors import Floats

TILE = 1_024, 1_024
"""Queries and documents multiplied at once: 4 MB of scores, which stay in the cache until they were looked at."""
_LEAST_ROWS = 256
"""Queries that are worth a thread of their own."""
_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB, and as much to find the best of them."""
_SEED = 4_096
"""Documents that FAISS looks at, where nothing is known yet of how high a query's best ones score."""


class Blocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; begins anew each time it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


class Swept(NamedTuple):
    """What a sweep found for some queries [q, d]."""

    queries: Floats
    ids: Ids
    """The `width` best documents of each query, or all where there are fewer, unordered: [q, w]; -1 stands for none."""
    scores: Floats
    """Their float32 scores; -inf for none. What is not there scores at most as much as the least that is."""
    longest: float
    """The greatest length of a document vector."""


def sweeps(parts: Iterable[Floats], blocks: Blocks, width: int, engine: Engine, device: str = "cpu") -> Iterator[Swept]:
    """The `width` best documents of each query of each of `parts`, by scores that rounding has touched."""
    made: Callable[[], _Worker] = partial(_Tiles, width) if device == "cpu" else partial(_Gpu, width, device)
    begun, asked = tee(map(partial(_Part, width), parts))
    items = chain.from_iterable(map(part.item, blocks) for part in asked)
    found = engine.map(Worker(made, device), items)
    for part in begun:
        for block in islice(found, len(blocks)):
            part.add(block)
        yield part.swept()


class _Item(NamedTuple):
    queries: Floats
    documents: Floats
    least: Floats
    """The score that a document must reach for each query: [q]."""


class _Found(NamedTuple):
    """Of one block the best documents of each query that reach its `least`: [q, width], filled up with NONE."""

    best: Entries
    longest: float
    documents: int


class _Part:
    """Queries, and the best documents of each in the blocks until now."""

    def __init__(self, width: int, queries: Floats) -> None:
        self._queries, self._best = queries, np.full((len(queries), width), NONE)
        self._documents, self._longest = 0, 0.0

    def item(self, documents: Floats) -> _Item:
        """A block to sweep. Where several are swept at once, `least` may be of fewer blocks than it could be."""
        return _Item(self._queries, documents, reached(self._best))

    def add(self, block: _Found) -> None:
        """Take in what the next block has."""
        there = np.where(block.best == NONE, NONE, block.best + np.uint64(self._documents))
        for start in range(0, len(there), TILE[0]):
            rows = slice(start, start + TILE[0])
            self._best[rows] = least_of(np.concatenate([self._best[rows], there[rows]], axis=1), self._best.shape[1])
        self._documents += block.documents
        self._longest = max(self._longest, block.longest)

    def swept(self) -> Swept:
        """What there is after all blocks."""
        best = np.sort(self._best, axis=1)[:, : self._documents]
        ids = np.where(best == NONE, -1, places_of(best))
        return Swept(self._queries, ids, np.where(ids < 0, np.float32(-np.inf), scores_of(best)), self._longest)


_Worker = Callable[[_Item], list[_Found]]
"""Holds on to none of its items."""


class _Tiles:
    """A worker on the CPU.

    Method: tiles of the score matrix are computed, compared with the score that a document must reach, and forgotten.
    That score rises with what is found, so after the first few thousand documents hardly any passes, and a sweep takes
    little more than the products. FAISS finds the first ones: its heaps are fast while much passes.
    """

    def __init__(self, width: int) -> None:
        from threadpoolctl import ThreadpoolController

        self._faiss, self._width, self._controller = faiss_by_blas(), width, ThreadpoolController()

    def __call__(self, item: _Item) -> list[_Found]:
        queries, documents, least = item
        best, seeded = np.full((len(queries), self._width), NONE), 0
        if np.isneginf(least).any():
            seeded = min(max(_SEED, 4 * self._width), len(documents))
            metric = self._faiss.METRIC_INNER_PRODUCT
            scores, ids = self._faiss.knn(queries, documents[:seeded], min(self._width, seeded), metric=metric)
            best[:, : ids.shape[1]] = np.where(ids < 0, NONE, entries(ids, scores))
        threads = self._faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), _LEAST_ROWS), TILE[0])
        strips = [slice(start, start + rows) for start in range(0, len(queries), rows)]

        def sweep(strip: slice) -> None:
            best[strip] = _swept(queries[strip], documents, seeded, least[strip], best[strip])

        each = max(1, threads // max(len(strips), 1))
        with self._controller.limit(limits=each, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(sweep, strips):
                pass
        return [_Found(best, float(lengths(documents).max(initial=0)), len(documents))]


class _Gpu:
    """A worker on a GPU, by torch: there products cost so little that all of them are gone through.

    In float32 itself: TF32 and bfloat16 lie farther off than `nearest` reckons with. Where the GPU's memory does not
    hold so many queries at once, it has half as many from then on. Raises `InputError` where it does not hold one.
    """

    def __init__(self, width: int, device: str) -> None:
        self._width, self._device, self._scores = width, device, _SCORES

    def __call__(self, item: _Item) -> list[_Found]:
        import torch

        queries, documents, least = item
        best = np.full((len(queries), self._width), NONE)
        width, start = min(self._width, len(documents)), 0
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            there = torch.tensor(documents, device=self._device).T
            while start < len(queries):
                part = slice(start, start + max(1, self._scores // len(documents)))
                try:
                    found = torch.topk(torch.tensor(queries[part], device=self._device) @ there, width, sorted=False)
                except torch.OutOfMemoryError:
                    self._scores //= 2
                    if self._scores < len(documents):
                        raise
                    continue
                scores, ids = (values.cpu().numpy() for values in found)
                best[part, :width] = np.where(scores >= least[part, None], entries(ids, scores), NONE)
                start = part.stop
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the memory of {self._device} does not hold {len(documents):,} vectors and their scores. Free it, "
                'lower block under [mine], or search on the CPU: search_device = "cpu".'
            ) from error
        finally:
            torch.set_float32_matmul_precision(precision)
        return [_Found(best, float(lengths(documents).max(initial=0)), len(documents))]


def _swept(queries: Floats, documents: Floats, start: int, least: Floats, best: Entries) -> Entries:
    """`best` [q, width] after the documents from `start` on, of which only those count that reach `least` [q]."""
    width = best.shape[1]
    enough = np.fmax(least, reached(best))[:, None]
    scores, passes = np.empty((len(queries), TILE[1]), np.float32), np.empty((len(queries), TILE[1]), np.bool_)
    rows: list[Ids] = []
    hits: list[Entries] = []

    def merged() -> Entries:
        return least_of(np.concatenate([best, _side_by_side(len(queries), rows, hits)], axis=1), width)

    for first in range(start, len(documents), TILE[1]):
        part = documents[first : first + TILE[1]]
        if len(part) < TILE[1]:
            scores, passes = scores[:, : len(part)].copy(), passes[:, : len(part)].copy()
        np.matmul(queries, part.T, out=scores)
        places = np.flatnonzero(np.greater_equal(scores, enough, out=passes))
        row, column = np.divmod(places, len(part))
        rows.append(row)
        hits.append(entries(column + first, scores.ravel()[places]))
        if sum(map(len, rows)) > width * len(queries):
            best = merged()
            enough = np.fmax(least, reached(best))[:, None]
            rows, hits = [], []
    return merged()


def _side_by_side(size: int, rows: list[Ids], hits: list[Entries]) -> Entries:
    """Entries that belong to rows 0 to `size`, as a matrix that is as wide as the longest row needs."""
    row = np.concatenate([np.empty(0, np.int64), *rows])
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=size)
    out = np.full((size, int(counts.max(initial=0))), NONE)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    out[row[order], rank] = np.concatenate([np.empty(0, np.uint64), *hits])[order]
    return out


def reached(best: Entries) -> Floats:
    """The score that a further document must reach to be among some best ones [q, width]: [q]; -inf where any is."""
    last = best.max(axis=1, initial=0)
    return np.where(last == NONE, np.float32(-np.inf), scores_of(np.where(last == NONE, 0, last).astype(np.uint64)))


def least_of(made: Entries, width: int) -> Entries:
    """The `width` first entries of each row [q, n], in no order; the row where it has no more."""
    return made if made.shape[1] <= width else np.partition(made, width - 1, axis=1)[:, :width]


def faiss_by_blas() -> Any:
    """The module faiss, set to multiply matrices by BLAS however few the queries are.

    Else it goes without where queries x dimension is below 128,000, and takes several times as long for the 20 to 300
    queries that are new after a change.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss
