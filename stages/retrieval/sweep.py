"""The sweep: which documents could be among a query's best, by float32 scores, as fast as matrices are multiplied.

What it finds is only whom to look at; `stages.retrieval.nearest` scores it again, so nothing here shapes a result.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, tee
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np

from stages.engine import Engine, Worker
from stages.errors import InputError
from stages.retrieval.lists import NONE, Entries, entries, places_of, scores_of
from stages.retrieval.scores import lengths
from stages.retrieval.sources import Ids
from stages.retrieval.vectors import Floats

TILE = 1_024, 1_024
"""Queries and documents multiplied at once: 4 MB of scores, which stay in the cache until they were looked at."""
_LIMITED = Lock()
"""Threads of BLAS are limited for the whole process: two that did so at once would leave it limited."""
_LEAST_ROWS = 256
"""Queries that are worth a thread of their own."""
_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB, and as much to find the best of them."""


class Blocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; begins anew each time it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


class Swept(NamedTuple):
    """What a sweep found for some queries [q, d]."""

    queries: Floats
    ids: Ids
    """The `width` best documents of each query, or all where there are fewer, best first: [q, w]."""
    scores: Floats
    """Their float32 scores. What is not there scores at most as much as the last that is."""
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
    """The score that a document must beat for each query: [q]; -inf where any will do."""


class _Found(NamedTuple):
    """Of one block the best documents of each query that beat its `least`: [q, width], filled up with NONE."""

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
        for start in range(0, len(self._best), TILE[0]):
            best, more = (made[start : start + TILE[0]] for made in (self._best, block.best))
            there = np.where(more == NONE, NONE, more + np.uint64(self._documents))
            best[:] = first_of(np.concatenate([best, there], axis=1), best.shape[1])
        self._documents += block.documents
        self._longest = max(self._longest, block.longest)

    def swept(self) -> Swept:
        """What there is after all blocks."""
        self._best.sort(axis=1)
        best = self._best[:, : self._documents]
        return Swept(self._queries, places_of(best), scores_of(best), self._longest)


_Worker = Callable[[_Item], list[_Found]]
"""Holds on to none of its items."""


class _Tiles:
    """A worker on the CPU.

    Method: tiles of the score matrix are computed, compared with the score that a document must beat, and forgotten.
    That score rises with what is found, so after the first few thousand documents hardly any passes, and a sweep takes
    little more than the products. Each thread has its own queries and multiplies alone.
    """

    def __init__(self, width: int) -> None:
        from threadpoolctl import ThreadpoolController

        self._width, self._controller = width, ThreadpoolController()

    def __call__(self, item: _Item) -> list[_Found]:
        import faiss

        queries, documents, least = item
        best = np.full((len(queries), self._width), NONE)
        threads = faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), _LEAST_ROWS), TILE[0])
        strips = [slice(start, start + rows) for start in range(0, len(queries), rows)]

        def sweep(strip: slice) -> None:
            _Strip(best[strip], least[strip]).sweep(queries[strip], documents)

        each = max(1, threads // max(len(strips), 1))
        with _LIMITED, self._controller.limit(limits=each, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(sweep, strips):
                pass
        return [_Found(best, float(lengths(documents).max(initial=0)), len(documents))]


class _Strip:
    """The `best` documents [q, width] of some queries, which is filled; only those count that beat `least` [q]."""

    def __init__(self, best: Entries, least: Floats) -> None:
        self._best, self._least = best, least
        self._enough = least[:, None].copy()
        self._row: list[Ids] = []
        self._hits: list[Entries] = []
        self._counts = np.zeros(len(best), np.int64)

    def sweep(self, queries: Floats, documents: Floats) -> None:
        """Go through all documents. A later one with the score of an earlier one never takes its place."""
        size, width = self._best.shape
        scores, passes = np.empty((size, TILE[1]), np.float32), np.empty((size, TILE[1]), np.bool_)
        for first in range(0, len(documents), TILE[1]):
            part = documents[first : first + TILE[1]]
            if len(part) < TILE[1]:
                scores, passes = np.empty((size, len(part)), np.float32), np.empty((size, len(part)), np.bool_)
            np.matmul(queries, part.T, out=scores)
            places = np.flatnonzero(np.greater(scores, self._enough, out=passes))
            row, column = np.divmod(places, len(part))
            counts = np.bincount(row, minlength=size)
            if (crowded := counts > width).any():
                some = np.flatnonzero(crowded)
                self._merge(some, entries(np.arange(first, first + len(part)), scores[some]))
                few = ~crowded[row]
                places, row, column, counts = places[few], row[few], column[few], np.where(crowded, 0, counts)
            self._row.append(row)
            self._hits.append(entries(column + first, scores.ravel()[places]))
            self._counts += counts
            if self._counts.max(initial=0) > 2 * width:  # of any query, so that none makes the others wide
                self._merge_hits()
        self._merge_hits()

    def _merge_hits(self) -> None:
        some = np.flatnonzero(self._counts)
        if not len(some):
            return
        row, hits, counts = np.concatenate(self._row), np.concatenate(self._hits), self._counts[some]
        order = np.argsort(row, kind="stable")
        side_by_side = np.full((len(some), int(counts.max())), NONE)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        side_by_side[np.repeat(np.arange(len(some)), counts), np.arange(len(row)) - starts] = hits[order]
        self._merge(some, side_by_side)
        self._row.clear()
        self._hits.clear()
        self._counts[:] = 0

    def _merge(self, some: Ids, more: Entries) -> None:
        """Take in entries [n, m] of some queries."""
        self._best[some] = first_of(np.concatenate([self._best[some], more], axis=1), self._best.shape[1])
        self._enough[some] = np.maximum(self._least[some], reached(self._best[some]))[:, None]


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
                best[part, :width] = np.where(scores > least[part, None], entries(ids, scores), NONE)
                start = part.stop
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the memory of {self._device} does not hold {len(documents):,} vectors and their scores. Free it, "
                'lower block under [mine], or search on the CPU: search_device = "cpu".'
            ) from error
        finally:
            torch.set_float32_matmul_precision(precision)
        return [_Found(best, float(lengths(documents).max(initial=0)), len(documents))]


def reached(best: Entries) -> Floats:
    """The score that a further document must beat to be among some best ones [q, width]: [q]; -inf where any is."""
    last = best.max(axis=1, initial=0)
    return np.where(last == NONE, np.float32(-np.inf), scores_of(last))


def first_of(made: Entries, width: int) -> Entries:
    """The `width` first entries of each row [q, n], in no order; the row where it has no more."""
    return made if made.shape[1] <= width else np.partition(made, width - 1, axis=1)[:, :width]
