"""The bootstrap against a loop that follows its definition, and against probabilities computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.statistics import bootstrap
from stages.statistics.bootstrap import (
    BootstrapResult,
    format_interval,
    resample_means,
    resample_sums,
    run_paired_bootstrap,
)


def column(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]


def test_a_constant_difference_has_an_interval_of_one_point() -> None:
    groups = np.array(list("abcdef"))
    [found] = run_paired_bootstrap(np.full((6, 1), 0.1), groups, n_resamples=199, seed=0)
    assert found == pytest.approx(BootstrapResult(0.1, 0.1, 0.1, 2 * 1 / 200))


def test_no_difference_has_p_1() -> None:
    assert run_paired_bootstrap(np.zeros((7, 1)), np.arange(7), n_resamples=100, seed=0) == [
        BootstrapResult(0.0, 0.0, 0.0, 1.0)
    ]


def test_probabilities_by_hand() -> None:
    # one group of six differs: a sample without it, (5/6)^6 = 33.5 % of them, has a mean of 0, none is below
    [found] = run_paired_bootstrap(column(1, 0, 0, 0, 0, 0), np.arange(6), n_resamples=20_000, seed=3)
    assert found.difference == pytest.approx(1 / 6)
    assert found.p == pytest.approx(2 * (5 / 6) ** 6, abs=0.02)
    assert found.low == 0
    assert found.high == pytest.approx(3 / 6)  # P(four times or more) = 0.9 %, P(three or more) = 6.2 %


def test_opposite_differences_have_opposite_intervals() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.05, 0.1, size=(40, 1))
    there, back = (run_paired_bootstrap(sign * values, np.arange(40), n_resamples=500, seed=1)[0] for sign in (1, -1))
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))  # type: ignore[operator]
    assert back.p == there.p


def test_five_groups_are_too_few_however_many_queries() -> None:
    assert run_paired_bootstrap(np.ones((50, 1)), np.arange(50) % 5, n_resamples=100, seed=0) == [
        BootstrapResult(1.0, None, None, None)
    ]


def test_whole_groups_are_resampled() -> None:
    values = np.repeat([0.3, -0.1, 0.2, -0.2, 0.1, 0.0], 10)[:, None]
    [single] = run_paired_bootstrap(values, np.arange(60), n_resamples=1000, seed=0)
    [grouped] = run_paired_bootstrap(values, np.repeat(np.arange(6), 10), n_resamples=1000, seed=0)
    assert grouped.high - grouped.low > 2 * (single.high - single.low)  # type: ignore[operator]


def test_the_confidence_sets_the_width() -> None:
    values = np.random.default_rng(0).normal(size=(50, 1))
    [wide] = run_paired_bootstrap(values, np.arange(50), n_resamples=1000, seed=0, confidence=0.99)
    [narrow] = run_paired_bootstrap(values, np.arange(50), n_resamples=1000, seed=0, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-8, 8), st.integers(-8, 8)), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_the_matrix_product_equals_a_loop(rows: list[tuple[int, int, int]], seed: int) -> None:
    code = np.unique([group for group, _, _ in rows], return_inverse=True)[1]
    values = np.array([row[1:] for row in rows], dtype=np.float64) / 8
    groups = code.max() + 1
    members = [values[code == group] for group in range(groups)]
    random = np.random.default_rng(seed)
    naive = []
    for _ in range(20):
        times = random.multinomial(groups, np.full(groups, 1 / groups))
        drawn = [query for group in range(groups) for query in list(members[group]) * times[group]]
        naive.append(np.mean(drawn, axis=0))
    sums = np.array([part.sum(axis=0) for part in members])
    sizes = np.array([len(part) for part in members], dtype=np.float64)
    assert resample_means(sums, sizes, 20, seed) == pytest.approx(np.array(naive), abs=1e-9)


def test_sums_of_one_group_are_its_values() -> None:
    assert resample_sums(np.array([[3.0, 4.0]]), 3, seed=0).tolist() == [[3.0, 4.0]] * 3


def test_an_interval_has_one_format_for_both_ends() -> None:
    assert format_interval(0.0514, 0.1137, "+.3f") == "[+0.051, +0.114]"
    assert format_interval(0.02, 0.131, ".1%") == "[2.0%, 13.1%]"


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, sizes = np.arange(12.0).reshape(6, 2), np.arange(1.0, 7.0)
    whole = resample_means(sums, sizes, 100, seed=0)
    monkeypatch.setattr(bootstrap, "_MAX_BLOCK_CELLS", 42)
    assert np.array_equal(resample_means(sums, sizes, 100, seed=0), whole)
