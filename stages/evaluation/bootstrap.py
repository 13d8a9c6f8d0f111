"""Is the difference between two systems on the same queries more than luck? The paired bootstrap, by group."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_GROUPS = 6
"""With fewer independent groups not even a unanimous result reaches p < 0.05 (sign flips: 2 / 2^5 = 0.0625)."""

_CELLS = 1 << 22


class Comparison(NamedTuple):
    """The mean difference a - b, its interval, and the two-sided p; the last three None with too few groups."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


def compare(
    differences: NDArray[np.float64],
    group: NDArray[Any],
    *,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Compare two systems by `differences` of shape (queries, measures), a less b, whose queries come in groups.

    `group[i]` names query i's group; there is at least one query. Whole groups are drawn with replacement, as queries
    of one group (one article, one thread) are not independent; the statistic is the mean difference over the drawn
    queries. The interval is the percentile interval (Efron and Tibshirani 1993, ch. 13; for systems on shared queries
    Sakai 2006; for whole clusters Field and Welsh 2007). p is the same distribution read the other way (Davison and
    Hinkley 1997, with their + 1), so p < 1 - confidence where the interval leaves out 0. All measures share the draws.
    """
    observed = differences.mean(axis=0)
    _, code = np.unique(group, return_inverse=True)
    sizes = np.bincount(code).astype(np.float64)
    if len(sizes) < MIN_GROUPS:
        return [Comparison(float(difference), None, None, None) for difference in observed]
    sums = np.zeros((len(sizes), differences.shape[1]))
    np.add.at(sums, code, differences)
    drawn = resample(sums, sizes, samples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    extreme = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (extreme + 1) / (samples + 1))
    return [Comparison(*map(float, column)) for column in zip(observed, low, high, p, strict=True)]


def resample(sums: NDArray[np.float64], sizes: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """`samples` bootstrap means (samples, measures): as many groups as there are, drawn with replacement.

    `sums` (groups, measures) and `sizes` (groups) are of the groups. How often each group is drawn is multinomial, so
    a block of samples is one matrix product. Rounded to 12 digits: sums that cancel are 0, in whatever order added.
    """
    groups = len(sizes)
    random = np.random.default_rng(seed)
    even = np.full(groups, 1 / groups)
    block = max(1, _CELLS // groups)
    means = []
    for start in range(0, samples, block):
        times = random.multinomial(groups, even, size=min(block, samples - start)).astype(np.float64)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means).round(12)
