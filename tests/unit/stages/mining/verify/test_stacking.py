"""Stacking uses a verifier if and only if it improves the estimate on held-out positives."""

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


def make_candidates(effect: float, queries: int = 200, seed: int = 0) -> tuple[np.ndarray, ...]:
    """p, score, lowest, best, labels and query_ids of candidates whose log odds are those of p plus `effect` x
    score."""
    rng = np.random.default_rng(seed)
    n = queries * 10
    p = rng.uniform(0.02, 0.5, n)
    gap = rng.normal(size=n)
    labels = rng.uniform(size=n) < 1 / (1 + np.exp(-(np.log(p / (1 - p)) + effect * gap)))
    best = np.repeat(rng.normal(size=queries), 10)
    query_ids = np.array([f"q{i // 10}" for i in range(n)], dtype=object)
    score, p, best = (values.astype(np.float32) for values in (gap + best, p, best))
    return p, score, best - 1, best, labels, query_ids


def test_an_informative_verifier_is_used() -> None:
    p, score, lowest, best, labels, query_ids = make_candidates(2.0)
    stacked_model = fit_stacked_model(p, score, lowest, best, labels, TWICE[: len(p)], query_ids)
    assert len(stacked_model.models) == N_FOLDS
    assert stacked_model.metrics["log_loss_stacked"] < stacked_model.metrics["log_loss_estimator"] - 0.05
    assert stacked_model.metrics["auc_stacked"] > stacked_model.metrics["auc_estimator"] + 0.05
    assert stacked_model.metrics["log_loss_reduction"] > 1.645 * stacked_model.metrics["log_loss_reduction_se"] > 0
    assert stacked_model.reason.startswith("it improves the estimate: log loss 0.")
    found = stacked_model.predict_probability(p, score, lowest, best, query_ids)
    assert auc(found, labels) > auc(p, labels) + 0.05
    # one of two positives is held out: at most 0.85 unlabelled positives for each known one
    others = found[~labels].astype(np.float64)
    assert (others * pu_weight(others, np.ones(len(others)))).sum() <= 0.851 * labels.sum()
    no_scores = np.full(len(p), NAN, np.float32)
    assert np.array_equal(stacked_model.predict_probability(p, no_scores, lowest, best, query_ids), p)
    half_scored = np.where(np.arange(len(p)) % 2, score, NAN).astype(np.float32)
    half_updated = stacked_model.predict_probability(p, half_scored, lowest, best, query_ids)
    assert np.array_equal(half_updated[::2], p[::2])
    assert np.array_equal(half_updated[1::2], found[1::2])


@pytest.mark.parametrize("seed", range(5))
def test_an_uninformative_verifier_is_not_used(seed: int) -> None:
    p, score, lowest, best, labels, query_ids = make_candidates(0.0, seed=seed)
    stacked_model = fit_stacked_model(p, score, lowest, best, labels, TWICE[: len(p)], query_ids)
    assert stacked_model.models == ()
    assert stacked_model.reason.startswith("it does not improve the estimate significantly: log loss 0.")
    assert stacked_model.metrics["auc_verifier"] == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(stacked_model.predict_probability(p, score, lowest, best, query_ids), p)


def test_a_query_gets_the_model_that_was_not_fitted_on_it() -> None:
    p, score, lowest, best, labels, query_ids = make_candidates(2.0)
    fold = assign_folds(query_ids.tolist())
    one, other = (
        fit_stacked_model(p, score, lowest, best, fold_labels, TWICE[: len(p)], query_ids).models
        for fold_labels in (labels, np.where(fold == 2, False, labels))
    )
    assert one[2] == other[2]
    assert one[0] != other[0]


def test_too_few_held_out_positives() -> None:
    p, score, lowest, best, labels, query_ids = make_candidates(2.0)
    few_labels = np.zeros(len(p), np.bool_)
    few_labels[np.flatnonzero(labels)[:29]] = True
    stacked_model = fit_stacked_model(p, score, lowest, best, few_labels, TWICE[: len(p)], query_ids)
    assert stacked_model == StackedModel(
        (),
        "too few held-out positives have an uncertain probability (29) to test it",
        {"n_held_out": 29, "candidates": len(p)},
    )
    no_scores = np.full(len(p), NAN, np.float32)
    assert fit_stacked_model(p, no_scores, lowest, best, labels, TWICE[: len(p)], query_ids).metrics == {
        "n_held_out": 0,
        "candidates": 0,
    }


def test_the_features_by_hand() -> None:
    found = build_stacking_features(*(np.array([x], np.float32) for x in (0.5, 2.0, 1.0, 5.0)))
    assert dict(zip(STACKING_FEATURES, found[0].tolist(), strict=True)) == {
        "log_odds": 0.0,
        "verifier_gap_max": -3.0,
        "verifier_gap_min": 1.0,
        "verifier_score": 2.0,
    }
    assert STACKING_FEATURES[: len(BASE_FEATURES)] == BASE_FEATURES


def test_raise_only() -> None:
    p = np.array([0.1, 0.1, 0.9, 0.1, 0.1], np.float32)
    score = np.array([3, -5, 3, NAN, 3], np.float32)
    best = np.array([3, 3, 3, 3, NAN], np.float32)
    assert raise_only(p, score, best).tolist() == pytest.approx([0.5, 0.1, 0.9, 0.1, 0.1])


def test_the_standard_error_counts_queries_and_not_rows() -> None:
    values = np.array([1.0, 3.0])
    once = cluster_robust_mean(values, np.ones(2), np.array(["a", "b"], dtype=object))
    # mean 2, deviations -1 and 1: sqrt(2 x 2/1) / 2
    assert once == (2.0, pytest.approx(1.0))
    # ten equal rows of a query are no more evidence than one
    repeated = cluster_robust_mean(
        np.repeat(values, 10), np.ones(20), np.repeat(np.array(["a", "b"], dtype=object), 10)
    )
    assert repeated == pytest.approx(once)


def test_auc_by_hand() -> None:
    # of 2 x 2 pairs: 3 > 1, 3 > 2, 2 > 1, and 2 = 2 for a half
    assert auc(np.array([3, 2, 1, 2.0]), np.array([True, True, False, False])) == 3.5 / 4
