"""How high a document scores for any question, and how widely: what its score for one question is measured by."""

from threading import Lock

import numpy as np

from stages.core.arrays import Doubles, Floats, Ints

_MIN_SCORE_STD = 1e-6
_SCORE_STATS_DOCUMENTS_PER_BATCH = 8_192
_MANTISSA_BITS = 18


class DocumentScoreStats:
    """Every document's `compute_score_stats`, computed when they are first asked for; 8 bytes a document are held.

    Threads may share it: what two of them need at the same time both compute, to the same figures.
    """

    def __init__(self, n_documents: int, probe_vectors: Floats) -> None:
        self._probe_vectors = probe_vectors
        self._lock = Lock()  # nobody sees a level without its width
        self._mean, self._std = np.full((2, n_documents), np.nan, np.float32)

    def __call__(self, rows: Ints, vectors: Floats) -> tuple[Floats, Floats]:
        """Those of the documents of these numbers [n], each once, with their vectors [n, d]: [n] each."""
        with self._lock:
            new = np.flatnonzero(np.isnan(self._mean[rows]))
        found = compute_score_stats(vectors[new], self._probe_vectors)
        with self._lock:
            self._mean[rows[new]], self._std[rows[new]] = found
            return self._mean[rows], self._std[rows]


def compute_score_stats(vectors: Floats, probe_vectors: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each document's scores for the probes: [n] each.

    A product of matrices depends in its last bits on where a row stands; so these are taken in float64 and kept to
    _BITS, and a document's figures depend on nothing else that is asked.
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
