"""Scores of pairs of vectors whose bits depend on the two vectors alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.core.arrays import Doubles, Floats, Ints

_RESCORE_BATCH_PAIRS = 512
"""Pairs scored at once: their vectors in float64 fit into the cache."""
_PAIRS_PER_THREAD_TASK = 16 * _RESCORE_BATCH_PAIRS
"""Pairs of one task of a thread."""
_MAX_PRODUCTS_PER_PAIR = 16
"""All queries are multiplied with all documents if that gives at most this many products for each requested pair."""
BFLOAT16_ROUNDING_UNITS = 4
"""Rounding units of float32 in a sum of bfloat16 products: GPUs truncate there instead of rounding."""
_MIN_NORMAL_FLOAT32 = 2.0**-126
"""Some processors treat smaller numbers as 0."""


def pair_scores(queries: Floats, documents: Floats) -> Floats:
    """Inner products of float32 [n, d] with float32 [n, d], row by row: float32 [n].

    Computed in float64, in which products of float32 numbers are exact, and rounded once; each row is summed in one
    fixed order. So the score of a pair does not depend on other pairs, and pairs of equal vectors tie exactly. It is
    never -0.
    """
    out = np.empty(len(queries), np.float32)
    doubles = _allocate_float64_pairs(*queries.shape)
    for start in range(0, len(queries), _RESCORE_BATCH_PAIRS):
        part = slice(start, start + _RESCORE_BATCH_PAIRS)
        _score_row_pairs(queries[part], documents[part], doubles, out[part])
    return out


def pair_scores_at(queries: Floats, documents: Floats, query_index: Ints, document_index: Ints) -> Floats:
    """`pair_scores` of the pairs (queries[query_index[i]], documents[document_index[i]]), in batches: float32 [n].

    It uses as many threads as FAISS; the scores do not depend on their number.
    """
    out = np.empty(len(query_index), np.float32)

    def score(run: int) -> None:
        doubles = _allocate_float64_pairs(len(query_index), queries.shape[1])
        for start in range(run, min(run + _PAIRS_PER_THREAD_TASK, len(query_index)), _RESCORE_BATCH_PAIRS):
            part = slice(start, start + _RESCORE_BATCH_PAIRS)
            _score_row_pairs(queries[query_index[part]], documents[document_index[part]], doubles, out[part])

    if len(query_index) <= _PAIRS_PER_THREAD_TASK:
        score(0)
    else:
        import faiss

        with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
            for _ in threads.map(score, range(0, len(query_index), _PAIRS_PER_THREAD_TASK)):
                pass
    return out


def max_pair_scores(
    queries: Floats, documents: Floats, query_index: Ints, document_index: Ints, segment: Ints
) -> Floats:
    """The highest of `pair_scores_at` in each run of equal `segment` [n], which belongs to one query: float32 [runs].

    If the pairs are a large share of all possible pairs, one float32 matrix product (with an error of at most
    `float32_error_bound`) finds those that can be the highest of a run, and only these are scored.
    """
    if len(queries) * len(documents) <= _MAX_PRODUCTS_PER_PAIR * len(query_index):
        approximate = (queries @ documents.T)[query_index, document_index].astype(np.float64)
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        best = np.repeat(np.maximum.reduceat(approximate, starts), np.diff(starts, append=len(segment)))
        near = approximate >= best - 2 * float32_error_bound(queries, max_norm(documents))[query_index]
        query_index, document_index, segment = query_index[near], document_index[near], segment[near]
    scores = pair_scores_at(queries, documents, query_index, document_index)
    highest: Floats = np.maximum.reduceat(scores, np.flatnonzero(np.diff(segment, prepend=-1)))
    return highest


def vector_norms(vectors: Floats) -> Doubles:
    """Euclidean norms of float32 [n, d]: float64 [n]."""
    norms = np.empty(len(vectors))
    doubles = _allocate_float64_pairs(*vectors.shape)[0]
    for start in range(0, len(vectors), _RESCORE_BATCH_PAIRS):
        part = vectors[start : start + _RESCORE_BATCH_PAIRS]
        vectors64 = doubles[: len(part)]
        vectors64[:] = part
        norms[start : start + _RESCORE_BATCH_PAIRS] = np.sqrt(np.einsum("nd,nd->n", vectors64, vectors64))
    return norms


def _allocate_float64_pairs(pairs: int, dimension: int) -> Doubles:
    """A buffer for pairs in float64 [2, up to _RESCORE_BATCH_PAIRS, d], reused because allocations are slow."""
    return np.empty((2, min(_RESCORE_BATCH_PAIRS, pairs), dimension))


def _score_row_pairs(queries: Floats, documents: Floats, buffer: Doubles, out: Floats) -> None:
    # Converted first, because the conversion in einsum splits rows at the end of its buffer and sums them in pieces.
    a, b = buffer[:, : len(out)]
    a[:], b[:] = queries, documents
    out[:] = np.einsum("nd,nd->n", a, b)
    out += 0  # -0, which too small a number is rounded to, becomes 0


def max_norm(vectors: Floats) -> float:
    """The largest of their `vector_norms`; 0 without vectors."""
    return float(vector_norms(vectors).max(initial=0))


def float32_error_bound(queries: Floats, max_document_norm: float) -> Doubles:
    """Largest error of float32 inner products with vectors of norm <= `max_document_norm`: float64 [q]."""
    return inner_product_error_bound(vector_norms(queries), max_document_norm, queries.shape[1])


def inner_product_error_bound(
    query_norms: Doubles,
    max_document_norm: float,
    dimension: int,
    query_errors: Doubles | float = 0.0,
    max_document_error: float = 0.0,
    rounding_units: int = 1,
) -> Doubles:
    """Largest difference of an inner product, summed in float32, from `pair_scores`: float64 [q].

    `query_norms` [q] are the norms |q|, `max_document_norm` is the largest |x|. If rounded vectors q' and x' are
    multiplied, `query_errors` [q] are |q - q'| and `max_document_error` is the largest |x - x'|: by Cauchy and Schwarz
    this changes <q, x> by at most |q - q'| |x| + |q'| |x - x'|. The error of a sum is at most d u |q'| |x'| (Higham,
    Accuracy and Stability of Numerical Algorithms, 3.1), where u is `rounding_units` times that of float32. Subnormal
    numbers may be treated as 0 at every step.
    """
    sum_error = (dimension + 4) * 2.0**-24 * rounding_units
    underflow = 2 * dimension**0.5 * _MIN_NORMAL_FLOAT32
    query_norms = query_norms + query_errors + underflow
    max_document_norm = max_document_norm + max_document_error + underflow
    bound: Doubles = (
        query_errors * max_document_norm
        + query_norms * max_document_error
        + sum_error / (1 - sum_error) * (1 + sum_error) * query_norms * max_document_norm
        + underflow * (query_norms + max_document_norm)
        + (dimension + 1) * _MIN_NORMAL_FLOAT32
    )
    return bound
