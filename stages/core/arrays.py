"""Names of array types, and computations on arrays that several steps share."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def l2_normalise(vectors: Floats) -> Floats:
    """The rows of [n, d] scaled to length 1; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, np.float32(1e-12))).astype(np.float32)
    return unit


def sigmoid(log_odds: NDArray[np.floating]) -> Doubles:
    """Probabilities of log odds [n], in float64."""
    out: Doubles = 1 / (1 + np.exp(-np.clip(log_odds.astype(np.float64), -700, 700)))
    return out


def compute_log_odds(p: Floats) -> Doubles:
    """Log odds of probabilities [n], in float64; they are clipped to 1e-6 and 1 - 1e-6."""
    clipped = np.clip(p.astype(np.float64), 1e-6, 1 - 1e-6)
    out: Doubles = np.log(clipped / (1 - clipped))
    return out


class Segments(NamedTuple):
    """Rows [n] that are sorted by query, as segments of one query each, for sums without a loop over queries."""

    starts: Ints
    """[q]: the first row of each segment."""
    segment_ids: Ints
    """[n]: the segment of each row."""

    @classmethod
    def from_sorted(cls, sorted_ids: Ints) -> "Segments":
        """The segments of rows whose query numbers [n] are sorted."""
        is_start = np.diff(sorted_ids, prepend=sorted_ids[:1] - 1) != 0
        return cls(np.flatnonzero(is_start), np.cumsum(is_start) - 1)

    @property
    def sizes(self) -> Ints:
        """[q]: the number of rows in each segment."""
        return np.diff(self.starts, append=len(self.segment_ids))

    def sum(self, values: NDArray[Any]) -> Doubles:
        """The sum of the values [n] of each segment, in float64: [q]."""
        return np.add.reduceat(values, self.starts, dtype=np.float64)

    def max(self, values: Floats) -> Floats:
        """The highest of the values [n] of each segment: [q]."""
        return np.maximum.reduceat(values, self.starts)
