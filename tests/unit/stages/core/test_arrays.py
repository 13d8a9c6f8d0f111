"""Computations on arrays: each by hand."""

import numpy as np
import pytest

from stages.core.arrays import Segments, compute_log_odds, l2_normalise, sigmoid


def test_rows_are_scaled_to_length_1_and_a_row_of_zeros_stays() -> None:
    unit = l2_normalise(np.array([[3, 4], [0, 0]], np.float32))
    assert unit.tolist() == np.array([[0.6, 0.8], [0, 0]], np.float32).tolist()
    assert unit.dtype == np.float32


def test_sigmoid_is_the_inverse_of_log_odds_and_takes_any_number() -> None:
    assert sigmoid(np.array([-1e30, 0, 1e30], np.float32)).astype(np.float32).tolist() == [0.0, 0.5, 1.0]
    p = np.array([0.25, 0.5, 0.9], np.float32)
    assert compute_log_odds(p) == pytest.approx(np.log([1 / 3, 1, 9]))
    assert sigmoid(compute_log_odds(p)) == pytest.approx(p)
    assert sigmoid(compute_log_odds(np.array([0, 1], np.float32))) == pytest.approx([1e-6, 1 - 1e-6])


def test_segments_sum_and_take_the_highest_of_rows_that_are_sorted_by_query() -> None:
    segments = Segments.from_sorted(np.array([4, 4, 9]))
    assert segments.segment_ids.tolist() == [0, 0, 1]
    assert segments.sizes.tolist() == [2, 1]
    values = np.array([1, 3, 2], np.float32)
    assert segments.sum(values).tolist() == [4, 2]
    assert segments.max(values).tolist() == [3, 2]
