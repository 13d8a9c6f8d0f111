"""The k best documents of a query by inner product: exact, in bounded memory, with reproducible bits.

The documents are scanned in float32 or bfloat16. The last bits of such scores depend on block sizes and threads, so
they only select documents: these are scored again by `pair_scores`, whose result depends on the two vectors alone. The
order and the k-th rank follow those scores, so the result is the same for every dtype, device, block size, batch and
thread count, and an incremental search equals a full search bit for bit.
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
"""Documents that the scan keeps beyond k, so that rounding and few ties at rank k need no second scan."""
_BFLOAT16_MARGIN_DIVISOR = 2
"""In bfloat16, which has larger errors, the scan keeps k / 2 more."""
_PAIR_INDEX_BITS = 32
"""Bits for the position of a pair of query and document; the 31 above are for the document."""


def exact_search(
    queries: Floats,
    blocks: DocumentBlocks,
    k: int,
    margin: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[Ints, Floats]:
    """The k best documents of each query by inner product: ids int64 [q, k] and scores float32 [q, k].

    `blocks` is iterated two or three times. The order is that of `pair_scores`: descending score, then ascending id,
    also at rank k. With fewer than k documents the arrays are narrower.

    Method: a scan keeps the k + margin best documents by its scores, computed in `dtype` (float32 or bfloat16) on
    `device`. The error of these scores is bounded: in float32 by the usual bound of an inner product, d u |q| |x|
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), in bfloat16 also by the rounding errors of vectors
    (`inner_product_error_bound`) and scores (`ScanResult`). So documents more than twice the bound below the k-th score
    need not be scored again, and no other document belongs to the result if the exact k-th score exceeds the last kept
    score by more than the bound. Otherwise there are more ties than the margin, and a second scan finds all documents
    that reach the k-th score.
    Raises `InputError` if the error of a score exceeds the bound, or if memory runs out. The components of the vectors
    must be small enough for finite inner products in float32 (below 1e17).
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
    """`exact_search` of each of `query_batches`, with at least one query each. `executor` may scan on other machines,
    because the documents are scored again here."""
    if margin is None:
        margin = _FLOAT32_MARGIN + (k // _BFLOAT16_MARGIN_DIVISOR if dtype == "bfloat16" else 0)
    for scan_result in scan_batches(query_batches, blocks, k + margin, executor or InProcessExecutor(), device, dtype):
        yield _finalise_top_k(scan_result, blocks, k, margin)


def _finalise_top_k(scan_result: ScanResult, blocks: DocumentBlocks, k: int, margin: int) -> tuple[Ints, Floats]:
    """The k best of the k + margin documents that the scan found."""
    queries, ids, scores, error_bound = scan_result
    is_truncated = ids.shape[1] == k + margin  # else the scan returned all documents
    if is_truncated:
        ids = np.where(scores < (scores[:, k - 1] - 2 * error_bound)[:, None], -1, ids)
    ids, exact_scores = _sort_top_k(ids, _check_error_bounds(scan_result, _rescore(queries, blocks, ids)), k)
    if not is_truncated:
        return ids, exact_scores
    uncertain = np.flatnonzero(scores[:, -1] + error_bound >= exact_scores[:, -1].astype(np.float64))
    if len(uncertain):
        # at least k documents reach the k-th score
        _, new_ids, new_scores = search_above(queries[uncertain], blocks, k, exact_scores[uncertain, -1])
        ids[uncertain], exact_scores[uncertain] = new_ids.reshape(-1, k), new_scores.reshape(-1, k)
    return ids, exact_scores


def _check_error_bounds(scan_result: ScanResult, exact: Floats) -> Floats:
    """`exact` [q, n], the `pair_scores` of the scanned documents or -inf. Raises `InputError` if the error of a score
    exceeds its bound, because then the scan may have missed documents."""
    differences = np.abs(exact - scan_result.scores)
    violations = (differences > scan_result.error_bound[:, None]) & np.isfinite(exact)
    if violations.any():
        row, column = np.unravel_index(np.argmax(np.where(violations, differences, 0)), violations.shape)
        raise InputError(
            f"the scan gave the score {scan_result.scores[row, column]:.9g} for {exact[row, column]:.9g}, and the "
            f"largest error of exact matrix products is {scan_result.error_bound[row]:.2g}. A setting such as the "
            "environment variable NVIDIA_TF32_OVERRIDE=1 makes them less exact: unset it, or search with numpy on the "
            "CPU: [run] device = 'cpu' and dtype = 'float32'."
        )
    return exact


def search_above(queries: Floats, blocks: DocumentBlocks, k: int, min_scores: Floats) -> tuple[Ints, Ints, Floats]:
    """The k best documents of each query with a score of at least `min_scores` [q]; there may be fewer.

    Three flat arrays, by query and in the order of `exact_search`: the query's row, the document's id, the score. A
    document below `min_scores` takes only one float32 inner product, so this is fast if `min_scores` are high.
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
    """The k best of the documents `ids` [q, n] of each query: ids and scores [q, k] in the order of `exact_search`.

    The id -1 means no document; it is ranked last, with the score -inf.
    """
    return _sort_top_k(ids, _rescore(queries, blocks, ids), k)


def _sort_top_k(ids: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
    hits = np.where(ids < 0, NO_HIT, pack_hits(ids, scores))
    hits.sort(axis=1)
    hits = hits[:, :k]
    is_hit = hits != NO_HIT
    return np.where(is_hit, unpack_documents(hits), -1), np.where(is_hit, unpack_scores(hits), np.float32(-np.inf))


def _rescore(queries: Floats, blocks: DocumentBlocks, ids: Ints) -> Floats:
    """`pair_scores` of each query with its ids [q, k], block by block; -inf for the id -1."""
    scores = np.full(ids.size, -np.inf, np.float32)
    pairs = np.flatnonzero(ids >= 0)
    packed = ids.ravel()[pairs] << _PAIR_INDEX_BITS | pairs
    packed.sort()  # by document, then by query; several times faster than argsort
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
