"""Rows that come by query: figures of each query without a loop over queries."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Segments(NamedTuple):
    """Rows that come by query, as runs of one query each: q runs of n rows."""

    starts: Ints
    """[q]: where each begins."""
    segment_ids: Ints
    """[n]: which run a row belongs to."""

    @classmethod
    def from_sorted(cls, sorted_ids: Ints) -> "Segments":
        """Of rows with these queries [n], equal ones side by side."""
        is_start = np.diff(sorted_ids, prepend=sorted_ids[:1] - 1) != 0
        return cls(np.flatnonzero(is_start), np.cumsum(is_start) - 1)

    @property
    def sizes(self) -> Ints:
        """[q]: how many rows each has."""
        return np.diff(self.starts, append=len(self.segment_ids))

    def sum(self, values: NDArray[Any]) -> Doubles:
        """Sums of values [n] by run, in float64: [q]."""
        return np.add.reduceat(values, self.starts, dtype=np.float64)

    def max(self, values: Floats) -> Floats:
        """[q] of values [n]."""
        return np.maximum.reduceat(values, self.starts)
