"""Mean and standard deviation of a document's scores for sampled queries: the baseline of the hubness features."""

from threading import Lock

import numpy as np

from stages.core.arrays import Doubles, Floats, Ints

_MIN_SCORE_STD = 1e-6
_SCORE_STATS_DOCUMENTS_PER_BATCH = 8_192
_MANTISSA_BITS = 18


class DocumentScoreStats:
    """`compute_score_stats` of every document, computed at the first request and cached: 8 bytes a document.

    Threads may share it. If two threads need the same document at once, both compute it, with equal results.
    """

    def __init__(self, n_documents: int, probe_vectors: Floats) -> None:
        self._probe_vectors = probe_vectors
        self._lock = Lock()  # a reader never sees a new mean beside an old standard deviation
        self._mean, self._std = np.full((2, n_documents), np.nan, np.float32)

    def __call__(self, rows: Ints, vectors: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation [n] of distinct documents, by their numbers [n] and vectors [n, d]."""
        with self._lock:
            new = np.flatnonzero(np.isnan(self._mean[rows]))
        found = compute_score_stats(vectors[new], self._probe_vectors)
        with self._lock:
            self._mean[rows[new]], self._std[rows[new]] = found
            return self._mean[rows], self._std[rows]


def compute_score_stats(vectors: Floats, probe_vectors: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation [n] of the scores of document vectors [n, d] for probe queries [p, d].

    The last bits of a matrix product depend on the position of a row in the matrix. So the scores are computed in
    float64 and the results are rounded to `_MANTISSA_BITS`: they depend on the document alone.
    """
    mean, std = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.float32)
    transposed_probes = probe_vectors.T.astype(np.float64)
    for start in range(0, len(vectors), _SCORE_STATS_DOCUMENTS_PER_BATCH):
        part = slice(start, start + _SCORE_STATS_DOCUMENTS_PER_BATCH)
        scores = vectors[part].astype(np.float64) @ transposed_probes
        mean[part] = _round_mantissa(scores.mean(axis=1))
        std[part] = np.maximum(_round_mantissa(scores.std(axis=1)), _MIN_SCORE_STD)
    return mean, std


def _round_mantissa(values: Doubles) -> Doubles:
    mantissa, exponent = np.frexp(values)
    rounded: Doubles = np.ldexp(np.round(np.ldexp(mantissa, _MANTISSA_BITS)), exponent - _MANTISSA_BITS)
    return rounded
