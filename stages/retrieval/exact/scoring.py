"""Scores of pairs of vectors that depend, to the last bit, on the two vectors alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from stages.embedding.vector_store import Floats
from stages.retrieval.results import Ids

Doubles = npt.NDArray[np.float64]

_PAIRS = 512
"""Pairs scored at once: their vectors in float64 stay in the cache."""
_RUN = 16 * _PAIRS
"""Pairs that a thread scores before it takes the next ones."""
_SPARSE = 16
"""A product of all queries with all documents is taken where it has at most so many pairs for one that is asked for."""


COARSE = 4
"""Units of float32's rounding in a sum of products of bfloat16: GPUs cut off there where they should round."""
_SMALLEST = 2.0**-126
"""What is smaller some processors take for 0."""


def pair_scores(queries: Floats, documents: Floats) -> Floats:
    """Inner products of float32 [n, d] with float32 [n, d], row by row: float32 [n].

    Computed in float64, where products of float32 are exact, and rounded once; each row is summed by itself in one
    fixed order. So a pair's score does not depend on what it is computed together with, and pairs of equal vectors
    tie exactly. It is never -0.
    """
    out = np.empty(len(queries), np.float32)
    doubles = _doubles(*queries.shape)
    for start in range(0, len(queries), _PAIRS):
        part = slice(start, start + _PAIRS)
        _score(queries[part], documents[part], doubles, out[part])
    return out


def pair_scores_at(queries: Floats, documents: Floats, query: Ids, document: Ids) -> Floats:
    """`pair_scores` of the pairs (queries[query[i]], documents[document[i]]), few of them held at once: float32 [n].

    As many threads compute as FAISS has; a pair's score does not depend on how many.
    """
    out = np.empty(len(query), np.float32)

    def score(run: int) -> None:
        doubles = _doubles(len(query), queries.shape[1])
        for start in range(run, min(run + _RUN, len(query)), _PAIRS):
            part = slice(start, start + _PAIRS)
            _score(queries[query[part]], documents[document[part]], doubles, out[part])

    if len(query) <= _RUN:
        score(0)
    else:
        import faiss

        with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
            for _ in threads.map(score, range(0, len(query), _RUN)):
                pass
    return out


def highest_at(queries: Floats, documents: Floats, query: Ids, document: Ids, run: Ids) -> Floats:
    """The highest of `pair_scores_at` within each run of equal `run` [n], a run being of one query: float32 [runs].

    Where the pairs are a good part of all that there could be, one float32 product of both sides says which of a run
    can be the highest (it is off by at most `rounding`), and only these are scored.
    """
    if len(queries) * len(documents) <= _SPARSE * len(query):
        rough = (queries @ documents.T)[query, document].astype(np.float64)
        starts = np.flatnonzero(np.diff(run, prepend=-1))
        best = np.repeat(np.maximum.reduceat(rough, starts), np.diff(starts, append=len(run)))
        near = rough >= best - 2 * rounding(queries, longest(documents))[query]
        query, document, run = query[near], document[near], run[near]
    scores = pair_scores_at(queries, documents, query, document)
    highest: Floats = np.maximum.reduceat(scores, np.flatnonzero(np.diff(run, prepend=-1)))
    return highest


def lengths(vectors: Floats) -> Doubles:
    """Euclidean lengths of float32 [n, d], each by itself: float64 [n]."""
    out = np.empty(len(vectors))
    doubles = _doubles(*vectors.shape)[0]
    for start in range(0, len(vectors), _PAIRS):
        part = vectors[start : start + _PAIRS]
        held = doubles[: len(part)]
        held[:] = part
        out[start : start + _PAIRS] = np.sqrt(np.einsum("nd,nd->n", held, held))
    return out


def _doubles(pairs: int, dimension: int) -> Doubles:
    """Room for pairs in float64 [2, up to _PAIRS, d]. It is used again and again: new memory costs more than sums."""
    return np.empty((2, min(_PAIRS, pairs), dimension))


def _score(queries: Floats, documents: Floats, doubles: Doubles, out: Floats) -> None:
    # Converted first: einsum's own conversion would cut rows at its buffer's end and sum them in pieces.
    a, b = doubles[:, : len(out)]
    a[:], b[:] = queries, documents
    out[:] = np.einsum("nd,nd->n", a, b)
    out += 0  # -0, which too small a number is rounded to, becomes 0


def longest(vectors: Floats) -> float:
    """The greatest of their `lengths`; 0 where there are none."""
    return float(lengths(vectors).max(initial=0))


def rounding(queries: Floats, longest: float) -> Doubles:
    """How far a float32 inner product with a vector of length <= longest can lie from `pair_scores`: float64 [q]."""
    return off_by(lengths(queries), longest, queries.shape[1])


def off_by(q: Doubles, x: float, dimension: int, dq: Doubles | float = 0.0, dx: float = 0.0, units: int = 1) -> Doubles:
    """How far an inner product, summed in float32, may lie from `pair_scores`: float64 [q].

    `q` [q] are lengths |q|, `x` is the greatest |x|. Where other vectors q' and x' are multiplied, `dq` [q] are
    |q - q'| and `dx` is the greatest |x - x'|: by Cauchy and Schwarz this changes <q, x> by at most |q - q'| |x| +
    |q'| |x - x'|. Sums are off by at most d u |q'| |x'| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1),
    where u is `units` times float32's. What is very small may be taken for 0 anywhere.
    """
    sums = (dimension + 4) * 2.0**-24 * units
    lost = 2 * dimension**0.5 * _SMALLEST
    q, x = q + dq + lost, x + dx + lost
    bound: Doubles = (
        dq * x + q * dx + sums / (1 - sums) * (1 + sums) * q * x + lost * (q + x) + (dimension + 1) * _SMALLEST
    )
    return bound
