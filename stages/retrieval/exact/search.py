"""The k best documents of a query by inner product: exact, in bounded memory, the same bits however the work is cut.

The documents are swept in float32 or bfloat16. Such scores depend in their last bits on how the work was cut, so they
only choose whom to look at: what was found is scored again by `pair_scores`, whose result depends on the two vectors
alone. Order, cut and ties follow those scores, so the result is one and the same for every format, device, block size,
batch, thread count and history, and a run that searches only what is new can equal a run from nothing bit for bit.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stages.core.errors import InputError
from stages.core.executor import Engine, InProcess
from stages.embedding.vector_store import Floats
from stages.retrieval.exact.scan import Blocks, Swept, sweeps
from stages.retrieval.exact.scoring import longest, pair_scores_at, rounding
from stages.retrieval.exact.topk import TILE
from stages.retrieval.results import Ids
from stages.retrieval.topk_cache import NONE, entries, places_of, scores_of

_MARGIN = 32
"""Documents swept beyond k, so that rounding and short ties at the cut are settled without a second sweep."""
_COARSE = 2
"""One more for so many of k where they are swept in bfloat16, which lies farther off."""
_PLACES = 32
"""Bits for the place of a pair of a query and a document; the 31 above are for the document."""


def exact_top_k(
    queries: Floats,
    blocks: Blocks,
    k: int,
    margin: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[Ids, Floats]:
    """The k best documents of each query by inner product: ids int64 [q, k] and scores float32 [q, k].

    `blocks` is gone through two or three times. Exactly `pair_scores` orders the result: score falling, then id rising,
    at the cut too. With fewer than k documents the arrays are that much narrower.

    Method: a sweep keeps the k + margin best by its scores, multiplied in `dtype` (float32 or bfloat16) on `device`.
    How far these can be off is known: in float32 by the usual bound of an inner product, d u |q| |x| (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1), in bfloat16 by what rounding took from the vectors (`off_by`) and the
    scores (`Swept`) too. So what lies more than twice the bound below the kth of them need not be scored again, and a
    document that was not kept can't belong to the result where the kth score found lies above the last kept one by more
    than the bound. Queries where it does not, because of ties longer than the margin, are swept again for everything
    above the cut.
    Raises `InputError` where a score that was found is off by more than the bound, or memory runs out. Figures of the
    vectors must be small enough for sums of their products to be finite in float32 (as those below 1e17 are).
    """
    if not len(queries):
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
    (found,) = each_top_k([queries], blocks, k, margin, device=device, dtype=dtype)
    return found


def each_top_k(
    parts: Iterable[Floats],
    blocks: Blocks,
    k: int,
    margin: int | None = None,
    engine: Engine | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[tuple[Ids, Floats]]:
    """`exact_top_k` of each of `parts`, which are queries, at least one each. `engine` sweeps on `device`: they may be
    any machine's, because what is found is scored again here."""
    if margin is None:
        margin = _MARGIN + (k // _COARSE if dtype == "bfloat16" else 0)
    for swept in sweeps(parts, blocks, k + margin, engine or InProcess(), device, dtype):
        yield _settled(swept, blocks, k, margin)


def _settled(swept: Swept, blocks: Blocks, k: int, margin: int) -> tuple[Ids, Floats]:
    """The k best, from the k + margin that were swept."""
    queries, ids, scores, off = swept
    more = ids.shape[1] == k + margin  # else there are no further documents
    if more:
        ids = np.where(scores < (scores[:, k - 1] - 2 * off)[:, None], -1, ids)
    ids, found = _ordered(ids, _checked(swept, _rescored(queries, blocks, ids)), k)
    if not more:
        return ids, found
    unsure = np.flatnonzero(scores[:, -1] + off >= found[:, -1].astype(np.float64))
    if len(unsure):
        _, above, better = best_above(queries[unsure], blocks, k, found[unsure, -1])  # at least k reach the kth score
        ids[unsure], found[unsure] = above.reshape(-1, k), better.reshape(-1, k)
    return ids, found


def _checked(swept: Swept, exact: Floats) -> Floats:
    """`exact` [q, n], the scores of what was swept or -inf. Raises `InputError` where one was swept that is farther off
    than it can be: then nothing is known of what was not found."""
    apart = np.abs(exact - swept.scores)
    wrong = (apart > swept.off[:, None]) & np.isfinite(exact)
    if wrong.any():
        row, column = np.unravel_index(np.argmax(np.where(wrong, apart, 0)), wrong.shape)
        raise InputError(
            f"a score of {exact[row, column]:.9g} was swept as {swept.scores[row, column]:.9g}, and is off by at most "
            f"{swept.off[row]:.2g} where matrices are multiplied as asked for. Something makes it less exact, as the "
            "environment variable NVIDIA_TF32_OVERRIDE=1 does: unset it, or search by numpy on the CPU: search_device "
            "= 'cpu' and search_dtype = 'float32'."
        )
    return exact


def best_above(queries: Floats, blocks: Blocks, k: int, least: Floats) -> tuple[Ids, Ids, Floats]:
    """The k best documents of each query among those whose score reaches its `least` [q]; fewer where fewer do.

    Three flat arrays, by query and then as `exact_top_k` orders: the query's row, the document's id, the score. What
    can't reach `least` costs no more than one float32 inner product, so a high `least` makes this cheap.
    """
    reached = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    start = held = 0
    for block in blocks:
        bound = rounding(queries, longest(block))
        enough = np.nextafter((least - bound).astype(np.float32), np.float32(-np.inf))
        for first in range(0, len(block), TILE[1]):
            documents = block[first : first + TILE[1]]
            for top in range(0, len(queries), TILE[0]):
                asked = slice(top, top + TILE[0])
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
    return _ordered(ids, _rescored(queries, blocks, ids), k)


def _ordered(ids: Ids, scores: Floats, k: int) -> tuple[Ids, Floats]:
    made = np.where(ids < 0, NONE, entries(ids, scores))
    made.sort(axis=1)
    made = made[:, :k]
    there = made != NONE
    return np.where(there, places_of(made), -1), np.where(there, scores_of(made), np.float32(-np.inf))


def _rescored(queries: Floats, blocks: Blocks, ids: Ids) -> Floats:
    """`pair_scores` of each query with its ids [q, k], a block of documents at a time; -inf for the id -1."""
    scores = np.full(ids.size, -np.inf, np.float32)
    pairs = np.flatnonzero(ids >= 0)
    packed = ids.ravel()[pairs] << _PLACES | pairs
    packed.sort()  # by document, then by query; several times as fast as an argsort
    start = begin = 0
    for block in blocks:
        end = int(np.searchsorted(packed, (start + len(block)) << _PLACES))
        documents, pairs = packed[begin:end] >> _PLACES, packed[begin:end] & (1 << _PLACES) - 1
        scores[pairs] = pair_scores_at(queries, block, pairs // max(ids.shape[1], 1), documents - start)
        start, begin = start + len(block), end
    return scores.reshape(ids.shape)


def _best(found: Sequence[tuple[Ids, Ids, Floats]], k: int) -> tuple[Ids, Ids, Floats]:
    """The k best of each row, by row, of arrays (row, id, score)."""
    row, ids, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((ids, -scores, row))
    place = np.arange(len(order)) - np.searchsorted(row[order], row[order])
    kept = order[place < k]
    return row[kept], ids[kept], scores[kept]
