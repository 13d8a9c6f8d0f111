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
import numpy.typing as npt

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
_MANY = 0.1
"""Share of a tile that passes, above which it is not worth while to find out which documents do."""
_ROWS = 64
"""Queries that what was found is merged for at once: few, so that threads need little memory."""
_LEAST_ROWS = 256
"""Queries that are worth a thread of their own."""
_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB."""


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
        for _ in map(part.add, islice(found, len(blocks))):  # map holds on to none of them
            pass
        yield part.swept()


class _Item(NamedTuple):
    queries: Floats
    documents: Floats
    least: Floats
    """The score that a document must beat for each query: [q]; -inf where any will do."""


class _Found(NamedTuple):
    """Of one block the best documents of each query, at least of those that beat its `least`: [q, width], with NONE."""

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
        """What there is after all blocks; this is of no more use then."""
        best, self._best = self._best[:, : self._documents], np.empty((0, 0), np.uint64)
        best.sort(axis=1)
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
        self._row: list[npt.NDArray[np.int32]] = []
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
            np.greater(scores, self._enough, out=passes)
            if np.count_nonzero(passes) > _MANY * passes.size:
                self._merge_all(np.arange(first, first + len(part)), scores)
                continue
            places = np.flatnonzero(passes)
            row, column = np.divmod(places, len(part))
            self._row.append(row.astype(np.int32))
            self._hits.append(entries(column + first, scores.ravel()[places]))
            self._counts += np.bincount(row, minlength=size)
            if self._counts.max(initial=0) > 2 * width:  # of any query, so that none makes the others wide
                self._merge_hits()
        self._merge_hits()

    def _merge_all(self, places: Ids, scores: Floats) -> None:
        for start in range(0, len(scores), _ROWS):
            rows = slice(start, start + _ROWS)
            self._merge(rows, entries(places, scores[rows]))

    def _merge_hits(self) -> None:
        row = np.concatenate([np.empty(0, np.int32), *self._row])
        order = np.argsort(row, kind="stable")
        row, hits = row[order], np.concatenate([np.empty(0, np.uint64), *self._hits])[order]
        starts = np.concatenate([[0], np.cumsum(self._counts)])
        for start in range(0, len(self._best), _ROWS):
            rows = slice(start, start + _ROWS)
            mine = slice(starts[start], starts[min(rows.stop, len(self._best))])
            side_by_side = np.full((len(self._best[rows]), int(self._counts[rows].max())), NONE)
            side_by_side[row[mine] - start, np.arange(mine.start, mine.stop) - starts[row[mine]]] = hits[mine]
            self._merge(rows, side_by_side)
        self._row.clear()
        self._hits.clear()
        self._counts[:] = 0

    def _merge(self, rows: slice, more: Entries) -> None:
        """Take in entries [n, m] of some queries."""
        best = self._best[rows]
        best[:] = first_of(np.concatenate([best, more], axis=1), best.shape[1])
        self._enough[rows] = np.maximum(self._least[rows], reached(best))[:, None]


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
                part = slice(start, start + max(1, self._scores // max(1, len(documents))))
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
    """The `width` first entries of each row of `made` [q, n], which changes places, in no order; all of fewer."""
    if made.shape[1] > width:
        made.partition(width - 1, axis=1)
    return made[:, :width]
