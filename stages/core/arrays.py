"""Rows that come by query: figures of each query without a loop over queries."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


class Runs(NamedTuple):
    """Rows that come by query, as runs of one query each: q runs of n rows."""

    starts: Ints
    """[q]: where each begins."""
    of: Ints
    """[n]: which run a row belongs to."""

    @classmethod
    def by(cls, queries: Ints) -> "Runs":
        """Of rows with these queries [n], equal ones side by side."""
        begins = np.diff(queries, prepend=queries[:1] - 1) != 0
        return cls(np.flatnonzero(begins), np.cumsum(begins) - 1)

    @property
    def sizes(self) -> Ints:
        """[q]: how many rows each has."""
        return np.diff(self.starts, append=len(self.of))

    def total(self, values: NDArray[Any]) -> Doubles:
        """Sums of values [n] by run, in float64: [q]."""
        return np.add.reduceat(values, self.starts, dtype=np.float64)

    def highest(self, values: Floats) -> Floats:
        """[q] of values [n]."""
        return np.maximum.reduceat(values, self.starts)
