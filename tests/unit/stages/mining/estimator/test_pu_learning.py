"""The corrections for unlabelled positives, by hand."""

import numpy as np
import pytest

from stages.core.arrays import sigmoid
from stages.mining.estimator.pu_learning import (
    MAX_PU_PROBABILITY,
    MIN_LOGIT_OFFSET,
    fit_logit_offset,
    fit_logit_offsets,
    pu_correct,
    pu_weight,
)


def test_the_odds_of_a_held_out_positive_are_the_probability_of_an_unlabelled_one() -> None:
    # 1 held out, 1 unlabelled, 3 others: odds of 1 : 4, and 1 of the 4 that are not held out is a positive
    p = sigmoid(pu_correct(np.log(np.array([0.25, 1e-9, 1.0, 5.0]))))
    assert p.tolist() == pytest.approx([0.25, 1e-9, MAX_PU_PROBABILITY, MAX_PU_PROBABILITY])


def test_a_candidate_is_weighted_as_if_one_positive_fewer_were_known() -> None:
    # densities of 1 and 1: with one known positive 0.85 of 1.85 are unlabelled positives, with two 1.7 of 2.7
    p = np.array([0.85 / 1.85, 1.7 / 2.7, 0.0])
    assert pu_weight(p, np.array([1.0, 2.0, 1.0])).tolist() == pytest.approx([1.85 / 2.7, 2.7 / 3.55, 1.0])


def test_the_offset_makes_the_expected_number_that_of_the_held_out_positives() -> None:
    labels, n_known = np.array([True, False, False, False, False]), np.ones(5)
    # 4 p / (1 + p) = 0.85
    p = 0.2125 / 0.7875
    assert fit_logit_offset(np.zeros(5), labels, n_known) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    assert fit_logit_offset(np.full(5, 2.0), labels, n_known) == pytest.approx(np.log(p / (1 - p)) - 2, abs=1e-3)
    # with 3 known positives: 4 p / (1 + p / 3) = 2.55
    p = 0.6375 / 0.7875
    assert fit_logit_offset(np.full(5, 3.0), labels, 3 * n_known) == pytest.approx(np.log(p / (1 - p)) - 3, abs=1e-3)
    # if fewer are expected, nothing is added: perhaps all are labelled
    assert fit_logit_offset(np.full(5, -2.0), labels, n_known) == 0.0
    assert fit_logit_offset(np.full(5, 99.0), labels, n_known) == MIN_LOGIT_OFFSET
    assert fit_logit_offset(np.zeros(5), ~labels, n_known) == 0.0


def test_the_offset_of_a_fold_does_not_depend_on_its_own_rows() -> None:
    fold, labels, n_known = np.arange(50) % 5, np.arange(50) < 5, np.ones(50)
    log_odds = np.full(50, 1.0)
    before = fit_logit_offsets(log_odds, labels, n_known, fold)
    log_odds[fold == 3] = 9.0
    after = fit_logit_offsets(log_odds, labels, n_known, fold)
    outside = fold != 3
    assert after[3] == before[3] == fit_logit_offset(log_odds[outside], labels[outside], n_known[outside])
    assert all(after[number] < before[number] for number in (0, 1, 2, 4))
