"""The k best documents of a query by inner product: exact, in bounded memory, the same bits however the work is cut.

FAISS sweeps the documents in float32. Its scores depend in their last bits on how the work was cut, so they only choose
whom to look at: what was found is scored again by `pair_scores`, whose result depends on the two vectors alone. Order,
cut and ties follow those scores, so the result is one and the same for every block size, batch, thread count and
history, and a run that searches only what is new can equal a run from nothing bit for bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, tee
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.engine import Engine, InProcess, Worker
from stages.retrieval.vectors import Floats

Ids = npt.NDArray[np.int64]

_MARGIN = 32
"""Documents swept beyond k, so that rounding and short ties at the cut are settled without a second sweep."""
_PAIRS = 512
"""Pairs scored at once: their vectors in float64 stay in the cache."""
_RUN = 16 * _PAIRS
"""Pairs that a thread scores before it takes the next ones."""
_SPARSE = 16
"""A product of all queries with all documents is taken where it has at most so many pairs for one that is asked for."""
_TILE = 1_024, 2_048
"""Queries and documents multiplied at once where all that reach a score are wanted: 8 MB of scores."""


class Blocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; begins anew each time it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


def exact_top_k(queries: Floats, blocks: Blocks, k: int, margin: int = _MARGIN) -> tuple[Ids, Floats]:
    """The k best documents of each query by inner product: ids int64 [q, k] and scores float32 [q, k].

    `blocks` is gone through two or three times. Exactly `pair_scores` orders the result: score falling, then id rising,
    at the cut too. With fewer than k documents the arrays are that much narrower.

    Method: FAISS keeps the k + margin best of its own float32 scores. Such a score is off by at most the usual bound of
    an inner product, d u |q| |x| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). So a document that was
    not kept can't belong to the result where the kth score found lies above the least kept one by more than the bound.
    Queries where it does not, because of ties longer than the margin, are swept again for everything above the cut.
    """
    if not len(queries):
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
    (found,) = each_top_k([queries], blocks, k, margin)
    return found


def each_top_k(
    parts: Iterable[Floats], blocks: Blocks, k: int, margin: int = _MARGIN, engine: Engine | None = None
) -> Iterator[tuple[Ids, Floats]]:
    """`exact_top_k` of each of `parts`, which are queries, at least one each. `engine` sweeps: it may be any machine's,
    because what it finds is scored again here."""
    for queries, swept, ids, longest in _sweeps(parts, blocks, k + margin, engine or InProcess()):
        yield _settled(queries, swept, ids, longest, blocks, k, margin)


def _settled(
    queries: Floats, swept: Floats, ids: Ids, longest: float, blocks: Blocks, k: int, margin: int
) -> tuple[Ids, Floats]:
    """The k best, from the k + margin that were swept."""
    if not ids.shape[1]:
        return ids, swept
    everything = ids.shape[1] < k + margin
    ids, scores = best_of(queries, blocks, ids, k)
    if everything:
        return ids, scores
    cut = scores[:, -1].astype(np.float64)
    bound = _rounding(queries, longest)
    unsure = np.flatnonzero(swept.min(axis=1) + bound >= cut)
    if len(unsure):
        _, above, found = best_above(queries[unsure], blocks, k, scores[unsure, -1])  # at least k reach the kth score
        ids[unsure], scores[unsure] = above.reshape(-1, k), found.reshape(-1, k)
    return ids, scores


def best_above(queries: Floats, blocks: Blocks, k: int, least: Floats) -> tuple[Ids, Ids, Floats]:
    """The k best documents of each query among those whose score reaches its `least` [q]; fewer where fewer do.

    Three flat arrays, by query and then as `exact_top_k` orders: the query's row, the document's id, the score. What
    can't reach `least` costs no more than one float32 inner product, so a high `least` makes this cheap.
    """
    reached = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    start = held = 0
    for block in blocks:
        bound = _rounding(queries, float(lengths(block).max(initial=0)))
        enough = np.nextafter((least - bound).astype(np.float32), np.float32(-np.inf))
        for first in range(0, len(block), _TILE[1]):
            documents = block[first : first + _TILE[1]]
            for top in range(0, len(queries), _TILE[0]):
                asked = slice(top, top + _TILE[0])
                near = np.flatnonzero(queries[asked] @ documents.T >= enough[asked, None])
                rows, columns = near // len(documents) + top, near % len(documents)
                scores = pair_scores_at(queries, documents, rows, columns)
                kept = scores >= least[rows]
                reached.append((rows[kept], columns[kept] + start + first, scores[kept]))
                held += int(kept.sum())
                if held > 2 * k * len(queries):
                    reached = [_best(reached, k)]
                    held = len(reached[0][0])
        start += len(block)
    return _best(reached, k)


def best_of(queries: Floats, blocks: Blocks, ids: Ids, k: int) -> tuple[Ids, Floats]:
    """Of each query the k best of some documents, `ids` [q, n]: ids and scores [q, k] ordered as by `exact_top_k`.

    -1 among the ids stands for no document; it comes last in the result, with the score -inf.
    """
    scores = _rescored(queries, blocks, ids)
    order = np.lexsort((ids.view(np.uint64), -scores))[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def pair_scores(queries: Floats, documents: Floats) -> Floats:
    """Inner products of float32 [n, d] with float32 [n, d], row by row: float32 [n].

    Computed in float64, where products of float32 are exact, and rounded once; each row is summed by itself in one
    fixed order. So a pair's score does not depend on what it is computed together with, and pairs of equal vectors
    tie exactly.
    """
    out = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), _PAIRS):
        part = slice(start, start + _PAIRS)
        # Converted first: einsum's own conversion would cut rows at its buffer's end and sum them in pieces.
        a, b = queries[part].astype(np.float64, order="C"), documents[part].astype(np.float64, order="C")
        out[part] = np.einsum("nd,nd->n", a, b)
    return out


def pair_scores_at(queries: Floats, documents: Floats, query: Ids, document: Ids) -> Floats:
    """`pair_scores` of the pairs (queries[query[i]], documents[document[i]]), few of them held at once: float32 [n].

    As many threads compute as FAISS has; a pair's score does not depend on how many.
    """
    out = np.empty(len(query), np.float32)

    def score(run: int) -> None:
        for start in range(run, min(run + _RUN, len(query)), _PAIRS):
            part = slice(start, start + _PAIRS)
            out[part] = pair_scores(queries[query[part]], documents[document[part]])

    if len(query) <= _RUN:
        score(0)
    else:
        with ThreadPoolExecutor(faiss_by_blas().omp_get_max_threads()) as threads:
            for _ in threads.map(score, range(0, len(query), _RUN)):
                pass
    return out


def highest_at(queries: Floats, documents: Floats, query: Ids, document: Ids, run: Ids) -> Floats:
    """The highest of `pair_scores_at` within each run of equal `run` [n], a run being of one query: float32 [runs].

    Where the pairs are a good part of all that there could be, one float32 product of both sides says which of a run
    can be the highest (it is off by at most `_rounding`), and only these are scored.
    """
    if len(queries) * len(documents) <= _SPARSE * len(query):
        rough = (queries @ documents.T)[query, document].astype(np.float64)
        starts = np.flatnonzero(np.diff(run, prepend=-1))
        best = np.repeat(np.maximum.reduceat(rough, starts), np.diff(starts, append=len(run)))
        near = rough >= best - 2 * _rounding(queries, float(lengths(documents).max()))[query]
        query, document, run = query[near], document[near], run[near]
    scores = pair_scores_at(queries, documents, query, document)
    highest: Floats = np.maximum.reduceat(scores, np.flatnonzero(np.diff(run, prepend=-1)))
    return highest


def lengths(vectors: Floats) -> npt.NDArray[np.float64]:
    """Euclidean lengths of float32 [n, d], each by itself: float64 [n]."""
    out = np.empty(len(vectors))
    for start in range(0, len(vectors), _PAIRS):
        part = vectors[start : start + _PAIRS].astype(np.float64, order="C")
        out[start : start + _PAIRS] = np.sqrt(np.einsum("nd,nd->n", part, part))
    return out


def faiss_by_blas() -> Any:
    """The module faiss, set to multiply matrices by BLAS however few the queries are.

    Else it goes without where queries x dimension is below 128,000, and takes several times as long for the 20 to 300
    queries that are new after a change.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss


def _sweeps(
    parts: Iterable[Floats], blocks: Blocks, k: int, engine: Engine
) -> Iterator[tuple[Floats, Floats, Ids, float]]:
    """Each part and FAISS's k best: scores and ids [q, min(k, documents)] unordered, and the greatest length of a
    document vector."""
    import faiss

    parts, asked = tee(parts)
    items = chain.from_iterable(map(partial(_item, queries), blocks) for queries in asked)
    found = engine.map(Worker(partial(_Knn, k)), items)
    for queries in parts:
        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        start, longest = 0, 0.0
        for block in islice(found, len(blocks)):
            heap.add_result(block.scores, block.ids + start)
            longest = max(longest, block.longest)
            start += block.documents
        heap.finalize()
        width = min(k, start)
        yield queries, heap.D[:, :width], heap.I[:, :width], longest


class _Swept(NamedTuple):
    """What FAISS found in one block: scores and ids [q, min(k, documents)], ids from 0."""

    scores: Floats
    ids: Ids
    longest: float
    documents: int


def _item(queries: Floats, block: Floats) -> tuple[Floats, Floats]:
    return queries, block


class _Knn:
    """A worker's FAISS: an item is queries [q, d] and a block of documents [b, d]; none is held on to."""

    def __init__(self, k: int) -> None:
        self._faiss, self._k = faiss_by_blas(), k

    def __call__(self, item: tuple[Floats, Floats]) -> list[_Swept]:
        queries, block = item
        metric = self._faiss.METRIC_INNER_PRODUCT
        scores, ids = self._faiss.knn(queries, block, min(self._k, len(block)), metric=metric)
        return [_Swept(scores, ids, float(lengths(block).max(initial=0)), len(block))]


def _rescored(queries: Floats, blocks: Blocks, ids: Ids) -> Floats:
    """`pair_scores` of each query with its ids [q, k], a block of documents at a time; -inf for the id -1."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    scores = np.full(len(flat), -np.inf, np.float32)
    start, begin = 0, int(np.searchsorted(flat, 0, sorter=order))
    for block in blocks:
        end = int(np.searchsorted(flat, start + len(block), sorter=order))
        pairs = order[begin:end]
        scores[pairs] = pair_scores_at(queries, block, pairs // max(ids.shape[1], 1), flat[pairs] - start)
        start, begin = start + len(block), end
    return scores.reshape(ids.shape)


def _best(found: Sequence[tuple[Ids, Ids, Floats]], k: int) -> tuple[Ids, Ids, Floats]:
    """The k best of each row, by row, of arrays (row, id, score)."""
    row, ids, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((ids, -scores, row))
    place = np.arange(len(order)) - np.searchsorted(row[order], row[order])
    kept = order[place < k]
    return row[kept], ids[kept], scores[kept]


def _rounding(queries: Floats, longest: float) -> npt.NDArray[np.float64]:
    """How far a float32 inner product with a vector of length <= longest can lie from `pair_scores`: float64 [q]."""
    error = (queries.shape[1] + 4) * 2.0**-24
    bound: npt.NDArray[np.float64] = error / (1 - error) * lengths(queries) * longest + 1e-30
    return bound
