"""Is the difference between two systems on the same queries more than luck? The paired bootstrap, by group."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.params import option

MIN_GROUPS = 6
"""With fewer independent groups not even a unanimous result reaches p < 0.05 (sign flips: 2 / 2^5 = 0.0625)."""

_MAX_BLOCK_CELLS = 1 << 22


def bootstrap_samples_option() -> Any:
    """The field `bootstrap_samples`, which evaluate and the gate share."""
    return option(2000, "Bootstrap samples behind each interval.", section="evaluate", ge=100)


class BootstrapResult(NamedTuple):
    """The mean difference a - b, its interval, and the two-sided p; the last three None with too few groups."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


def run_paired_bootstrap(
    differences: NDArray[np.float64],
    groups: NDArray[Any],
    *,
    n_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> list[BootstrapResult]:
    """Compare two systems by `differences` of shape (queries, measures), a less b, whose queries come in
    groups.

    `group[i]` names query i's group; there is at least one query. Whole groups are drawn with replacement, as queries
    of one group (one article, one thread) are not independent; the statistic is the mean difference over the drawn
    queries. The interval is the percentile interval (Efron and Tibshirani 1993, ch. 13; for systems on shared queries
    Sakai 2006; for whole clusters Field and Welsh 2007). p is the same distribution read the other way (Davison and
    Hinkley 1997, with their + 1), so p < 1 - confidence where the interval leaves out 0. All measures share the draws.
    """
    observed = differences.mean(axis=0)
    _, group_index = np.unique(groups, return_inverse=True)
    group_sizes = np.bincount(group_index).astype(np.float64)
    if len(group_sizes) < MIN_GROUPS:
        return [BootstrapResult(float(difference), None, None, None) for difference in observed]
    group_sums = np.zeros((len(group_sizes), differences.shape[1]))
    np.add.at(group_sums, group_index, differences)
    resampled_means = resample_means(group_sums, group_sizes, n_resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled_means, [tail, 1 - tail], axis=0)
    n_opposite = np.minimum((resampled_means <= 0).sum(axis=0), (resampled_means >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (n_opposite + 1) / (n_resamples + 1))
    return [BootstrapResult(*map(float, column)) for column in zip(observed, low, high, p, strict=True)]


def resample_means(
    group_sums: NDArray[np.float64], group_sizes: NDArray[np.float64], n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """`n_resamples` bootstrap means (samples, measures): as many groups as there are, drawn with replacement.

    `group_sums` (groups, measures) and `group_sizes` (groups) are of the groups. How often each group is drawn is
    multinomial, so a block of samples is one matrix product. Rounded to 12 digits: sums that cancel are 0, in whatever
    order added.
    """
    n_groups = len(group_sizes)
    generator = np.random.default_rng(seed)
    probabilities = np.full(n_groups, 1 / n_groups)
    block_size = max(1, _MAX_BLOCK_CELLS // n_groups)
    means = []
    for start in range(0, n_resamples, block_size):
        draw_counts = generator.multinomial(n_groups, probabilities, size=min(block_size, n_resamples - start)).astype(
            np.float64
        )
        means.append((draw_counts @ group_sums) / (draw_counts @ group_sizes)[:, None])
    return np.concatenate(means).round(12)
