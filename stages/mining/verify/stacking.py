"""Stacking: combine p_false_negative with the scores of a verifier, if these improve it.

If the table has held-out positives (`holdout.hold_out_one`), two logistic regressions are cross-validated on them: one
with the log odds of p alone, one with the verifier's scores too. The verifier is used only if it lowers the log loss
significantly; a self-trained verifier of a small table often does not. Without held-out positives, a pretrained
verifier can only raise p (`raise_only`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.core.arrays import Bools, Doubles, Floats, Ints, compute_log_odds, sigmoid
from stages.core.context import Summary
from stages.mining.estimator.folds import assign_folds, can_fit_folds, get_training_masks
from stages.mining.estimator.logistic_model import LogisticModel
from stages.mining.estimator.pu_learning import fit_logit_offsets, pu_correct

BASE_FEATURES = ("log_odds",)
STACKING_FEATURES = ("log_odds", "verifier_gap_max", "verifier_gap_min", "verifier_score")
STACKING_C = 1.0
"""Inverse strength of the L2 penalty (scikit-learn's C)."""
MIN_IMPROVEMENT_Z = 1.645
"""The log loss must fall by more than this many standard errors: a one-sided test at 5 %."""


@dataclass(frozen=True)
class StackedModel:
    """A model for each fold that combines p and the verifier's scores; no models if the verifier is not used."""

    models: tuple[LogisticModel, ...]
    reason: str
    """Why the verifier is used or not, in words with numbers."""
    metrics: Summary
    """n_held_out, candidates, auc_estimator, auc_verifier, auc_stacked, log_loss_estimator, log_loss_stacked,
    log_loss_reduction and its standard error log_loss_reduction_se; all cross-validated."""
    logit_offsets: tuple[float, ...] = ()
    """The result of `pu_learning.fit_logit_offsets`, by fold."""

    def predict_probability(
        self, p: Floats, score: Floats, positive_min: Floats, positive_max: Floats, query_ids: Sequence[str]
    ) -> Floats:
        """p [n] updated by the verifier's scores [n]; unchanged if a score is NaN or the verifier is not used."""
        is_scored = ~np.isnan(score) & ~np.isnan(positive_max) & ~np.isnan(p)
        if not self.models or not is_scored.any():
            return p
        features = build_stacking_features(
            p[is_scored], score[is_scored], positive_min[is_scored], positive_max[is_scored]
        )
        fold = assign_folds(np.asarray(query_ids, dtype=object)[is_scored].tolist())
        stacked_p = sigmoid(
            pu_correct(_predict_by_fold(self.models, features, fold)) + np.array(self.logit_offsets)[fold]
        )
        out = p.astype(np.float32, copy=True)
        out[is_scored] = stacked_p
        return out


def fit_stacked_model(
    p: Floats,
    score: Floats,
    positive_min: Floats,
    positive_max: Floats,
    labels: Bools,
    weights: Floats,
    query_ids: Sequence[str],
) -> StackedModel:
    """Fit and test the stacked models on held-out positives (`labels` [n]) and the other candidates of their queries.

    All arguments are [n]. `p` comes from folds that did not see the query. `score`, `positive_min` and `positive_max`
    are the verifier's logits of the candidate and of its query's lowest and best *known* positive; rows with a NaN are
    skipped. `weights` are the weights of the held-out positives: the number of positives of their query.
    """
    is_scored = ~np.isnan(score) & ~np.isnan(positive_max) & ~np.isnan(p)
    features, labels = (
        build_stacking_features(p[is_scored], score[is_scored], positive_min[is_scored], positive_max[is_scored]),
        labels[is_scored],
    )
    scored_query_ids = np.asarray(query_ids, dtype=object)[is_scored]
    fold = assign_folds(scored_query_ids.tolist())
    metrics: Summary = {"n_held_out": int(labels.sum()), "candidates": len(labels)}
    if not can_fit_folds(labels, fold):
        return StackedModel(
            (),
            f"too few held-out positives have an uncertain probability ({metrics['n_held_out']}) to test it",
            metrics,
        )
    sample_weights = np.where(labels, weights[is_scored], 1.0).astype(np.float64)
    base_models, stacked_models = (
        _fit_folds(names, features, labels, sample_weights, fold) for names in (BASE_FEATURES, STACKING_FEATURES)
    )
    base_logits, stacked_logits = (
        _predict_by_fold(base_models, features[:, : len(BASE_FEATURES)], fold),
        _predict_by_fold(stacked_models, features, fold),
    )
    loss_reduction, standard_error = cluster_robust_mean(
        log_loss(base_logits, labels) - log_loss(stacked_logits, labels), sample_weights, scored_query_ids
    )
    metrics |= {
        "auc_estimator": round(auc(features[:, 0], labels), 4),
        "auc_verifier": round(auc(features[:, 1], labels), 4),
        "auc_stacked": round(auc(stacked_logits, labels), 4),
        "log_loss_estimator": round(float(np.average(log_loss(base_logits, labels), weights=sample_weights)), 5),
        "log_loss_stacked": round(float(np.average(log_loss(stacked_logits, labels), weights=sample_weights)), 5),
        "log_loss_reduction": round(loss_reduction, 5),
        "log_loss_reduction_se": round(standard_error, 5),
    }
    losses = f"log loss {metrics['log_loss_stacked']:.4f} with it, {metrics['log_loss_estimator']:.4f} without"
    aucs = f"AUC {metrics['auc_verifier']:.3f} alone, {metrics['auc_estimator']:.3f} of p, "
    aucs += f"{metrics['auc_stacked']:.3f} together"
    if loss_reduction > MIN_IMPROVEMENT_Z * standard_error:
        logit_offsets = fit_logit_offsets(
            pu_correct(stacked_logits), labels, weights[is_scored].astype(np.float64) - 1, fold
        )
        return StackedModel(stacked_models, f"it improves the estimate: {losses}; {aucs}", metrics, logit_offsets)
    return StackedModel((), f"it does not improve the estimate significantly: {losses}; {aucs}", metrics)


def raise_only(p: Floats, score: Floats, positive_max: Floats) -> Floats:
    """The maximum of p [n] and the probability that the verifier prefers the candidate to the query's best positive.

    That probability is the sigmoid of the difference of the two logits (Bradley and Terry 1952). p is never lowered, so
    a verifier that was not tested on this table can't add a negative.
    """
    return np.where(np.isnan(score) | np.isnan(positive_max), p, np.fmax(p, sigmoid(score - positive_max))).astype(
        np.float32
    )


def build_stacking_features(p: Floats, score: Floats, positive_min: Floats, positive_max: Floats) -> Floats:
    """The columns `STACKING_FEATURES` [n, 4]."""
    columns = [compute_log_odds(p), score - positive_max, score - positive_min, score]
    out: Floats = np.stack(columns, axis=1).astype(np.float32)
    return out


def cluster_robust_mean(values: Doubles, weights: Doubles, query_ids: NDArray[np.object_]) -> tuple[float, float]:
    """The weighted mean of `values` [n] and its standard error; the rows of a query are one cluster."""
    _, cluster = np.unique(query_ids.astype(str), return_inverse=True)
    cluster_sums = np.bincount(cluster, values * weights)
    cluster_weights = np.bincount(cluster, weights)
    mean = float(cluster_sums.sum() / cluster_weights.sum())
    n_clusters = len(cluster_weights)
    standard_error = (
        np.sqrt(np.square(cluster_sums - mean * cluster_weights).sum() * n_clusters / max(n_clusters - 1, 1))
        / cluster_weights.sum()
    )
    return mean, float(standard_error)


def auc(score: NDArray[np.floating], labels: Bools) -> float:
    """The area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, score))


def _fit_folds(
    names: Sequence[str], features: Floats, labels: Bools, weights: Doubles, fold: Ints
) -> tuple[LogisticModel, ...]:
    """A model for each fold, fitted on the rows outside it."""
    training_masks = get_training_masks(fold)
    return tuple(
        LogisticModel.fit(names, features[s, : len(names)], labels[s], weights[s], STACKING_C) for s in training_masks
    )


def _predict_by_fold(models: Sequence[LogisticModel], features: Floats, fold: Ints) -> Doubles:
    out = np.empty(len(features))
    for number, model in enumerate(models):
        out[fold == number] = model.predict_log_odds(features[fold == number])
    return out


def log_loss(logits: Doubles, labels: Bools) -> Doubles:
    """The log loss of each row [n]."""
    out: Doubles = np.logaddexp(0, np.where(labels, -logits, logits))
    return out
