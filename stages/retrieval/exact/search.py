"""The k best documents of a query by inner product: exact, in bounded memory, the same bits however the work is cut.

The documents are swept in float32 or bfloat16. Such scores depend in their last bits on how the work was cut, so they
only choose whom to look at: what was found is scored again by `pair_scores`, whose result depends on the two vectors
alone. Order, cut and ties follow those scores, so the result is one and the same for every format, device, block size,
batch, thread count and history, and a run that searches only what is new can equal a run from nothing bit for bit.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stages.core.arrays import Floats, Ints
from stages.core.errors import InputError
from stages.core.executor import Executor, InProcessExecutor
from stages.retrieval.exact.packed_hits import NO_HIT, pack_hits, unpack_documents, unpack_scores
from stages.retrieval.exact.scan import DocumentBlocks, ScanResult, scan_batches
from stages.retrieval.exact.scoring import float32_error_bound, max_norm, pair_scores_at
from stages.retrieval.exact.topk import TILE_SHAPE

_FLOAT32_MARGIN = 32
"""Documents that the scan keeps beyond k, so that rounding and short ties at the cut need no second scan."""
_BFLOAT16_MARGIN_DIVISOR = 2
"""One more for so many of k where they are swept in bfloat16, which lies farther off."""
_PAIR_INDEX_BITS = 32
"""Bits for the place of a pair of a query and a document; the 31 above are for the document."""


def exact_search(
    queries: Floats,
    blocks: DocumentBlocks,
    k: int,
    margin: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[Ints, Floats]:
    """The k best documents of each query by inner product: ids int64 [q, k] and scores float32 [q, k].

    `blocks` is gone through two or three times. Exactly `pair_scores` orders the result: score falling, then id
    rising, at the cut too. With fewer than k documents the arrays are that much narrower.

    Method: a scan keeps the k + margin best by its scores, multiplied in `dtype` (float32 or bfloat16) on `device`.
    How far these can be off is known: in float32 by the usual bound of an inner product, d u |q| |x| (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1), in bfloat16 by what rounding took from the vectors
    (`inner_product_error_bound`) and the scores (`ScanResult`) too. So what lies more than twice the bound below the
    kth of them need not be scored again, and a document that was not kept can't belong to the result where the kth
    score found lies above the last kept one by more than the bound. Queries where it does not, because of ties longer
    than the margin, are swept again for everything above the cut.
    Raises `InputError` where a score that was found is off by more than the bound, or memory runs out. Figures of the
    vectors must be small enough for sums of their products to be finite in float32 (as those below 1e17 are).
    """
    if not len(queries):
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
    (found,) = exact_search_batches([queries], blocks, k, margin, device=device, dtype=dtype)
    return found


def exact_search_batches(
    query_batches: Iterable[Floats],
    blocks: DocumentBlocks,
    k: int,
    margin: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[tuple[Ints, Floats]]:
    """`exact_search` of each of `query_batches`, which are queries, at least one each. `executor` scans on `device`:
    they may be
    any machine's, because what is found is scored again here."""
    if margin is None:
        margin = _FLOAT32_MARGIN + (k // _BFLOAT16_MARGIN_DIVISOR if dtype == "bfloat16" else 0)
    for scan_result in scan_batches(query_batches, blocks, k + margin, executor or InProcessExecutor(), device, dtype):
        yield _finalise_top_k(scan_result, blocks, k, margin)


def _finalise_top_k(scan_result: ScanResult, blocks: DocumentBlocks, k: int, margin: int) -> tuple[Ints, Floats]:
    """The k best, from the k + margin that were swept."""
    queries, ids, scores, error_bound = scan_result
    is_truncated = ids.shape[1] == k + margin  # else there are no further documents
    if is_truncated:
        ids = np.where(scores < (scores[:, k - 1] - 2 * error_bound)[:, None], -1, ids)
    ids, exact_scores = _sort_top_k(ids, _check_error_bounds(scan_result, _rescore(queries, blocks, ids)), k)
    if not is_truncated:
        return ids, exact_scores
    uncertain = np.flatnonzero(scores[:, -1] + error_bound >= exact_scores[:, -1].astype(np.float64))
    if len(uncertain):
        _, better_ids, better_scores = search_above(
            queries[uncertain], blocks, k, exact_scores[uncertain, -1]
        )  # at least k reach the kth score
        ids[uncertain], exact_scores[uncertain] = better_ids.reshape(-1, k), better_scores.reshape(-1, k)
    return ids, exact_scores


def _check_error_bounds(scan_result: ScanResult, exact: Floats) -> Floats:
    """`exact` [q, n], the scores of what was swept or -inf. Raises `InputError` where one was swept that is
    farther off
    than it can be: then nothing is known of what was not found."""
    differences = np.abs(exact - scan_result.scores)
    violations = (differences > scan_result.error_bound[:, None]) & np.isfinite(exact)
    if violations.any():
        row, column = np.unravel_index(np.argmax(np.where(violations, differences, 0)), violations.shape)
        raise InputError(
            f"a score of {exact[row, column]:.9g} was swept as {scan_result.scores[row, column]:.9g}, and is off by "
            f"at most "
            f"{scan_result.error_bound[row]:.2g} where matrices are multiplied as asked for. Something makes it "
            f"less exact, as the "
            "environment variable NVIDIA_TF32_OVERRIDE=1 does: unset it, or search by numpy on the CPU: [run] device = "
            "'cpu' and dtype = 'float32'."
        )
    return exact


def search_above(queries: Floats, blocks: DocumentBlocks, k: int, min_scores: Floats) -> tuple[Ints, Ints, Floats]:
    """The k best documents of each query among those whose score reaches its `min_scores` [q]; fewer where fewer do.

    Three flat arrays, by query and then as `exact_search` orders: the query's row, the document's id, the score. What
    can't reach `min_scores` costs no more than one float32 inner product, so a high `min_scores` makes this cheap.
    """
    results = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    start = n_results = 0
    for block in blocks:
        error_bound = float32_error_bound(queries, max_norm(block))
        thresholds = np.nextafter((min_scores - error_bound).astype(np.float32), np.float32(-np.inf))
        for first in range(0, len(block), TILE_SHAPE[1]):
            documents = block[first : first + TILE_SHAPE[1]]
            for top in range(0, len(queries), TILE_SHAPE[0]):
                query_slice = slice(top, top + TILE_SHAPE[0])
                passing = np.flatnonzero(queries[query_slice] @ documents.T >= thresholds[query_slice, None])
                rows, columns = passing // len(documents) + top, passing % len(documents)
                scores = pair_scores_at(queries, documents, rows, columns)
                kept = scores >= min_scores[rows]
                results.append((rows[kept], columns[kept] + start + first, scores[kept]))
                n_results += int(kept.sum())
                if n_results > 2 * k * len(queries):
                    results = [_top_k_by_query(results, k)]
                    n_results = len(results[0][0])
        start += len(block)
    return _top_k_by_query(results, k)


def search_among(queries: Floats, blocks: DocumentBlocks, ids: Ints, k: int) -> tuple[Ints, Floats]:
    """Of each query the k best of some documents, `ids` [q, n]: ids and scores [q, k] ordered as by `exact_search`.

    -1 among the ids means no document; it comes last in the result, with the score -inf.
    """
    return _sort_top_k(ids, _rescore(queries, blocks, ids), k)


def _sort_top_k(ids: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
    hits = np.where(ids < 0, NO_HIT, pack_hits(ids, scores))
    hits.sort(axis=1)
    hits = hits[:, :k]
    is_hit = hits != NO_HIT
    return np.where(is_hit, unpack_documents(hits), -1), np.where(is_hit, unpack_scores(hits), np.float32(-np.inf))


def _rescore(queries: Floats, blocks: DocumentBlocks, ids: Ints) -> Floats:
    """`pair_scores` of each query with its ids [q, k], a block of documents at a time; -inf for the id -1."""
    scores = np.full(ids.size, -np.inf, np.float32)
    pairs = np.flatnonzero(ids >= 0)
    packed = ids.ravel()[pairs] << _PAIR_INDEX_BITS | pairs
    packed.sort()  # by document, then by query; several times as fast as an argsort
    start = begin = 0
    for block in blocks:
        end = int(np.searchsorted(packed, (start + len(block)) << _PAIR_INDEX_BITS))
        documents, pairs = packed[begin:end] >> _PAIR_INDEX_BITS, packed[begin:end] & (1 << _PAIR_INDEX_BITS) - 1
        scores[pairs] = pair_scores_at(queries, block, pairs // max(ids.shape[1], 1), documents - start)
        start, begin = start + len(block), end
    return scores.reshape(ids.shape)


def _top_k_by_query(results: Sequence[tuple[Ints, Ints, Floats]], k: int) -> tuple[Ints, Ints, Floats]:
    """The k best of each row, by row, of arrays (row, id, score)."""
    row, ids, scores = (np.concatenate(parts) for parts in zip(*results, strict=True))
    order = np.lexsort((ids, -scores, row))
    rank = np.arange(len(order)) - np.searchsorted(row[order], row[order])
    kept = order[rank < k]
    return row[kept], ids[kept], scores[kept]
