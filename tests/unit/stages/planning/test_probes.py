"""Where probes measure, and what they make of it. tests/unit/pipeline/cli/test_plan.py runs them on real models."""

import numpy as np
import pytest

from stages.planning.probes import measured, middles, sweep, sweep_of


def test_lengths_are_taken_where_the_tokens_are() -> None:
    lengths = np.array([100, 1, 10, 1])
    # laid out by length 1, 1, 10, 100: half of the 112 tokens are reached in the longest, a twentieth in the third
    assert middles(lengths, np.ones(4), (0.5,)) == [0]
    assert middles(lengths, np.ones(4), (0.05,)) == [2]
    assert middles(lengths, np.array([1.0, 1000.0, 1.0, 1.0]), (0.5,)) == [1]


def test_texts_of_one_length_are_measured_once() -> None:
    assert len(middles(np.array([7, 7, 7]), np.ones(3), (0.1, 0.5, 0.9))) == 1


def test_two_times_tell_the_sweep_from_what_is_kept() -> None:
    # 10 products at 2 s and 1 candidate at 5 s; 40 products and 1 candidate
    found = sweep_of([25, 85], [10, 40], [1, 1])
    assert (found.product, found.kept) == (pytest.approx(2), pytest.approx(5))


def test_where_both_grow_alike_all_goes_to_what_is_kept() -> None:
    found = sweep_of([1, 2], [10, 20], [5, 10])
    assert (found.product, found.kept) == (0, pytest.approx(0.2))


def test_no_rate_is_negative() -> None:
    for times in ([10, 1], [1, 100]):
        found = sweep_of(times, [10, 40], [1, 1])
        assert found.product >= 0
        assert found.kept >= 0
        assert found.total(40, 1) > 0


def test_a_search_of_a_few_documents_can_be_measured() -> None:
    found = sweep(8, queries=5, documents=3, k=200)
    assert found.total(1e6, 1e6) > 0


def test_a_probe_runs_whole_batches_of_each_length() -> None:
    seen: list[tuple[int, int]] = []
    lengths = np.array([4, 8])
    rate = measured(lambda place, rows: seen.append((place, rows)), lengths, [0, 1], lambda place: 3 + place, 1.0)
    assert seen[:2] == [(1, 1), (1, 1)]  # one text of the longest warms up, and is timed
    assert set(seen[2:]) == {(0, 3), (1, 4)}
    assert rate.lengths == (4.0, 8.0)
    assert all(seconds >= 0 for seconds in rate.seconds)
