"""Confidence intervals by the bootstrap over groups of queries, for means and for the difference of two systems."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.params import option

MIN_GROUPS = 6
"""With fewer independent groups not even equal signs throughout reach p < 0.05 (sign test: 2 / 2^5 = 0.0625)."""

_MAX_BLOCK_CELLS = 1 << 22


def bootstrap_samples_option() -> Any:
    """The field `bootstrap_samples`, which evaluate and the gate share."""
    return option(2000, "Bootstrap samples behind each interval.", advanced=True, section="evaluate", ge=100)


class BootstrapResult(NamedTuple):
    """The mean difference a - b, its interval, and the two-sided p. The last three are None with too few groups."""

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
    """Compare two systems a and b on the same queries, of which there is at least one.

    `differences` [queries, metrics]: a's metrics less b's. `groups[i]` is the group of query i. Whole groups are drawn
    with replacement, because the queries of one group (one article, one thread) are not independent; the statistic is
    the mean difference over the drawn queries. The interval is the percentile interval (Efron and Tibshirani 1993, ch.
    13; for systems on shared queries Sakai 2006; for whole clusters Field and Welsh 2007). p comes from the same
    samples (Davison and Hinkley 1997, with their + 1), so p < 1 - confidence if the interval leaves out 0. All metrics
    share the samples.
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
    """`n_resamples` bootstrap means [samples, metrics] of whole groups: sums [groups, metrics] over sizes [groups].

    Rounded to 12 digits, so that sums which cancel are 0 in whatever order they are added.
    """
    sums = resample_sums(np.column_stack([group_sums, group_sizes]), n_resamples, seed)
    means: NDArray[np.float64] = (sums[:, :-1] / sums[:, -1:]).round(12)
    return means


def resample_sums(group_values: NDArray[np.float64], n_resamples: int, seed: int) -> NDArray[np.float64]:
    """`n_resamples` sums [samples, columns] over as many groups as there are, drawn with replacement.

    `group_values`: [groups, columns]. How often each group is drawn is multinomial, so a block of samples is one matrix
    product.
    """
    n_groups = len(group_values)
    generator = np.random.default_rng(seed)
    probabilities = np.full(n_groups, 1 / n_groups)
    block_size = max(1, _MAX_BLOCK_CELLS // n_groups)
    sums = []
    for start in range(0, n_resamples, block_size):
        n_samples = min(block_size, n_resamples - start)
        sums.append(generator.multinomial(n_groups, probabilities, size=n_samples).astype(np.float64) @ group_values)
    return np.concatenate(sums)


def format_interval(low: float, high: float, spec: str) -> str:
    """`[+0.051, +0.114]`: both ends by a format specification, such as "+.3f" or ".2%"."""
    return f"[{low:{spec}}, {high:{spec}}]"
