"""Scores of pairs of vectors that depend, to the last bit, on the two vectors alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.core.arrays import Doubles, Floats, Ints

_RESCORE_BATCH_PAIRS = 512
"""Pairs scored at once: their vectors in float64 stay in the cache."""
_PAIRS_PER_THREAD_TASK = 16 * _RESCORE_BATCH_PAIRS
"""Pairs that a thread scores before it takes the next ones."""
_MAX_PRODUCTS_PER_PAIR = 16
"""A product of all queries with all documents is taken where it has at most so many pairs for one that is asked for."""


BFLOAT16_ROUNDING_UNITS = 4
"""Units of float32's rounding in a sum of products of bfloat16: GPUs cut off there where they should round."""
_MIN_NORMAL_FLOAT32 = 2.0**-126
"""What is smaller some processors take for 0."""


def pair_scores(queries: Floats, documents: Floats) -> Floats:
    """Inner products of float32 [n, d] with float32 [n, d], row by row: float32 [n].

    Computed in float64, where products of float32 are exact, and rounded once; each row is summed by itself in one
    fixed order. So a pair's score does not depend on what it is computed together with, and pairs of equal vectors
    tie exactly. It is never -0.
    """
    out = np.empty(len(queries), np.float32)
    doubles = _allocate_float64_pairs(*queries.shape)
    for start in range(0, len(queries), _RESCORE_BATCH_PAIRS):
        part = slice(start, start + _RESCORE_BATCH_PAIRS)
        _score_row_pairs(queries[part], documents[part], doubles, out[part])
    return out


def pair_scores_at(queries: Floats, documents: Floats, query_index: Ints, document_index: Ints) -> Floats:
    """`pair_scores` of the pairs (queries[query[i]], documents[document[i]]), few of them held at once: float32 [n].

    As many threads compute as FAISS has; a pair's score does not depend on how many.
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
    """The highest of `pair_scores_at` within each run of equal `segment` [n], a run being of one query: float32 [runs].

    Where the pairs are a good part of all that there could be, one float32 product of both sides says which of a run
    can be the highest (it is off by at most `float32_error_bound`), and only these are scored.
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
    """Euclidean lengths of float32 [n, d], each by itself: float64 [n]."""
    norms = np.empty(len(vectors))
    doubles = _allocate_float64_pairs(*vectors.shape)[0]
    for start in range(0, len(vectors), _RESCORE_BATCH_PAIRS):
        part = vectors[start : start + _RESCORE_BATCH_PAIRS]
        vectors64 = doubles[: len(part)]
        vectors64[:] = part
        norms[start : start + _RESCORE_BATCH_PAIRS] = np.sqrt(np.einsum("nd,nd->n", vectors64, vectors64))
    return norms


def _allocate_float64_pairs(pairs: int, dimension: int) -> Doubles:
    """Room for pairs in float64 [2, up to _PAIRS, d]. It is used again and again: new memory costs more than sums."""
    return np.empty((2, min(_RESCORE_BATCH_PAIRS, pairs), dimension))


def _score_row_pairs(queries: Floats, documents: Floats, buffer: Doubles, out: Floats) -> None:
    # Converted first: einsum's own conversion would cut rows at its buffer's end and sum them in pieces.
    a, b = buffer[:, : len(out)]
    a[:], b[:] = queries, documents
    out[:] = np.einsum("nd,nd->n", a, b)
    out += 0  # -0, which too small a number is rounded to, becomes 0


def max_norm(vectors: Floats) -> float:
    """The greatest of their `vector_norms`; 0 where there are none."""
    return float(vector_norms(vectors).max(initial=0))


def float32_error_bound(queries: Floats, max_document_norm: float) -> Doubles:
    """How far a float32 inner product with a vector of length <= longest can lie from `pair_scores`: float64 [q]."""
    return inner_product_error_bound(vector_norms(queries), max_document_norm, queries.shape[1])


def inner_product_error_bound(
    query_norms: Doubles,
    max_document_norm: float,
    dimension: int,
    query_errors: Doubles | float = 0.0,
    max_document_error: float = 0.0,
    rounding_units: int = 1,
) -> Doubles:
    """How far an inner product, summed in float32, may lie from `pair_scores`: float64 [q].

    `query_norms` [q] are lengths |q|, `max_document_norm` is the greatest |x|. Where other vectors q' and x' are
    multiplied, `query_errors` [q] are |q - q'| and `max_document_error` is the greatest |x - x'|: by Cauchy and Schwarz
    this changes <q, x> by at most |q - q'| |x| + |q'| |x - x'|. Sums are off by at most d u |q'| |x'|
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), where u is `rounding_units` times float32's. What is
    very small may be taken for 0 anywhere.
    """
    sums = (dimension + 4) * 2.0**-24 * rounding_units
    lost = 2 * dimension**0.5 * _MIN_NORMAL_FLOAT32
    query_norms, max_document_norm = query_norms + query_errors + lost, max_document_norm + max_document_error + lost
    bound: Doubles = (
        query_errors * max_document_norm
        + query_norms * max_document_error
        + sums / (1 - sums) * (1 + sums) * query_norms * max_document_norm
        + lost * (query_norms + max_document_norm)
        + (dimension + 1) * _MIN_NORMAL_FLOAT32
    )
    return bound
