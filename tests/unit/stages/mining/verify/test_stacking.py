"""The second opinion: heard where it tells hidden positives apart, and nowhere else."""

import numpy as np
import pytest

from stages.mining.estimator.folds import N_FOLDS, assign_folds
from stages.mining.estimator.pu_learning import pu_weight
from stages.mining.verify.stacking import (
    BASE_FEATURES,
    STACKING_FEATURES,
    StackedModel,
    auc,
    build_stacking_features,
    cluster_robust_mean,
    fit_stacked_model,
    raise_only,
)

NAN = float("nan")
TWICE = np.full(10_000, 2.0, np.float32)


def band(teacher: float, queries: int = 200, seed: int = 0) -> tuple[np.ndarray, ...]:
    """p, score, lowest, best, labels and query_ids of candidates whose odds hang on p and, so far, on the teacher."""
    rng = np.random.default_rng(seed)
    n = queries * 10
    p = rng.uniform(0.02, 0.5, n)
    below = rng.normal(size=n)
    labels = rng.uniform(size=n) < 1 / (1 + np.exp(-(np.log(p / (1 - p)) + teacher * below)))
    best = np.repeat(rng.normal(size=queries), 10)
    query_ids = np.array([f"q{i // 10}" for i in range(n)], dtype=object)
    score, p, best = (side.astype(np.float32) for side in (below + best, p, best))
    return p, score, best - 1, best, labels, query_ids


def test_a_teacher_that_knows_is_heard() -> None:
    p, score, lowest, best, labels, query_ids = band(2.0)
    opinion = fit_stacked_model(p, score, lowest, best, labels, TWICE[: len(p)], query_ids)
    assert len(opinion.models) == N_FOLDS
    assert opinion.metrics["log_loss_stacked"] < opinion.metrics["log_loss_estimator"] - 0.05
    assert opinion.metrics["auc_stacked"] > opinion.metrics["auc_estimator"] + 0.05
    assert opinion.metrics["log_loss_reduction"] > 1.645 * opinion.metrics["log_loss_reduction_se"] > 0
    assert opinion.reason.startswith("it tells hidden positives apart: log loss 0.")
    found = opinion.predict_probability(p, score, lowest, best, query_ids)
    assert auc(found, labels) > auc(p, labels) + 0.05
    # of two positives one is hidden: for each that is found, at most 0.85 are missing where one is known
    others = found[~labels].astype(np.float64)
    assert (others * pu_weight(others, np.ones(len(others)))).sum() <= 0.851 * labels.sum()
    silent = np.full(len(p), NAN, np.float32)
    assert np.array_equal(opinion.predict_probability(p, silent, lowest, best, query_ids), p)
    some = np.where(np.arange(len(p)) % 2, score, NAN).astype(np.float32)
    half = opinion.predict_probability(p, some, lowest, best, query_ids)
    assert np.array_equal(half[::2], p[::2])
    assert np.array_equal(half[1::2], found[1::2])


@pytest.mark.parametrize("seed", range(5))
def test_a_teacher_that_knows_nothing_is_not(seed: int) -> None:
    p, score, lowest, best, labels, query_ids = band(0.0, seed=seed)
    opinion = fit_stacked_model(p, score, lowest, best, labels, TWICE[: len(p)], query_ids)
    assert opinion.models == ()
    assert opinion.reason.startswith("it adds nothing beyond luck: log loss 0.")
    assert opinion.metrics["auc_verifier"] == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(opinion.predict_probability(p, score, lowest, best, query_ids), p)


def test_a_question_is_judged_by_a_model_that_did_not_see_it() -> None:
    p, score, lowest, best, labels, query_ids = band(2.0)
    fold = assign_folds(query_ids.tolist())
    one, other = (
        fit_stacked_model(p, score, lowest, best, side, TWICE[: len(p)], query_ids).models
        for side in (labels, np.where(fold == 2, False, labels))
    )
    assert one[2] == other[2]
    assert one[0] != other[0]


def test_too_little_is_said() -> None:
    p, score, lowest, best, labels, query_ids = band(2.0)
    none = np.zeros(len(p), np.bool_)
    none[np.flatnonzero(labels)[:29]] = True
    opinion = fit_stacked_model(p, score, lowest, best, none, TWICE[: len(p)], query_ids)
    assert opinion == StackedModel(
        (),
        "too few hidden positives lie where p is unsure (29) to judge it by",
        {"n_held_out": 29, "candidates": len(p)},
    )
    unasked = np.full(len(p), NAN, np.float32)
    assert fit_stacked_model(p, unasked, lowest, best, labels, TWICE[: len(p)], query_ids).metrics == {
        "n_held_out": 0,
        "candidates": 0,
    }


def test_what_it_looks_at_by_hand() -> None:
    found = build_stacking_features(*(np.array([x], np.float32) for x in (0.5, 2.0, 1.0, 5.0)))
    assert dict(zip(STACKING_FEATURES, found[0].tolist(), strict=True)) == {
        "log_odds": 0.0,
        "verifier_gap_max": -3.0,
        "verifier_gap_min": 1.0,
        "verifier_score": 2.0,
    }
    assert STACKING_FEATURES[: len(BASE_FEATURES)] == BASE_FEATURES


def test_a_stranger_only_raises_p() -> None:
    p = np.array([0.1, 0.1, 0.9, 0.1, 0.1], np.float32)
    score = np.array([3, -5, 3, NAN, 3], np.float32)
    best = np.array([3, 3, 3, 3, NAN], np.float32)
    assert raise_only(p, score, best).tolist() == pytest.approx([0.5, 0.1, 0.9, 0.1, 0.1])


def test_the_error_counts_questions_and_not_rows() -> None:
    fall = np.array([1.0, 3.0])
    one = cluster_robust_mean(fall, np.ones(2), np.array(["a", "b"], dtype=object))
    # mean 2, deviations -1 and 1: sqrt(2 x 2/1) / 2
    assert one == (2.0, pytest.approx(1.0))
    # the same question told ten times is no more evidence
    many = cluster_robust_mean(np.repeat(fall, 10), np.ones(20), np.repeat(np.array(["a", "b"], dtype=object), 10))
    assert many == pytest.approx(one)


def test_auc_by_hand() -> None:
    # of 2 x 2 pairs: 3 > 1, 3 > 2, 2 > 1, and 2 = 2 for a half
    assert auc(np.array([3, 2, 1, 2.0]), np.array([True, True, False, False])) == 3.5 / 4
