"""How high a document scores for any question, and how widely: what its score for one question is measured by."""

from threading import Lock

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

_TINY = 1e-6
_AT_ONCE = 8_192
_BITS = 18


class Usual:
    """Every document's `usual_scores`, computed when they are first asked for; 8 bytes a document are held.

    Threads may share it: what two of them need at the same time both compute, to the same figures.
    """

    def __init__(self, documents: int, probes: Floats) -> None:
        self._probes = probes
        self._whole = Lock()  # nobody sees a level without its width
        self._level, self._width = np.full((2, documents), np.nan, np.float32)

    def __call__(self, document: Ints, vectors: Floats) -> tuple[Floats, Floats]:
        """Those of the documents of these numbers [n], each once, with their vectors [n, d]: [n] each."""
        with self._whole:
            new = np.flatnonzero(np.isnan(self._level[document]))
        found = usual_scores(vectors[new], self._probes)
        with self._whole:
            self._level[document[new]], self._width[document[new]] = found
            return self._level[document], self._width[document]


def usual_scores(vectors: Floats, probes: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each document's scores for the probes: [n] each.

    A product of matrices depends in its last bits on where a row stands; so these are taken in float64 and kept to
    _BITS, and a document's figures depend on nothing else that is asked.
    """
    level, width = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.float32)
    asked = probes.T.astype(np.float64)
    for start in range(0, len(vectors), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores = vectors[part].astype(np.float64) @ asked
        level[part] = _kept(scores.mean(axis=1))
        width[part] = np.maximum(_kept(scores.std(axis=1)), _TINY)
    return level, width


def _kept(values: Doubles) -> Doubles:
    mantissa, exponent = np.frexp(values)
    kept: Doubles = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return kept
