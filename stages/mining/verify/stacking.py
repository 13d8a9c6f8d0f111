"""Second opinion: what a teacher's score does to p_false_negative, and whether it is listened to at all.

Where the table has hidden positives to learn from (`holdout.hold_out_one`), a logistic regression over p's log odds and
the teacher's margins is fitted on them, in the folds of `learned`, and stands next to one over p's log odds
alone. If the margins do not lower the log loss on questions that neither model saw, beyond what luck between questions
does, the teacher is not listened to: a small table's self-taught teacher often has nothing to add. Where nothing is
hidden, a teacher from elsewhere can only raise p (`raise_only`): what it takes for a positive is not emitted on the
prior's word.
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
"""Inverse weight of the L2 penalty (scikit-learn's C); there are four figures to weigh."""
MIN_IMPROVEMENT_Z = 1.645
"""The loss must fall by so many of its standard errors over questions: by luck it does so once in twenty."""


@dataclass(frozen=True)
class StackedModel:
    """A model a fold that weighs p and the teacher; none where the teacher is not listened to."""

    models: tuple[LogisticModel, ...]
    reason: str
    """In words, with the figures: why it is listened to or not."""
    metrics: Summary
    """n_held_out, candidates, auc_estimator, auc_verifier, auc_stacked, log_loss_estimator, log_loss_stacked,
    log_loss_reduction and its standard error log_loss_reduction_se: over folds that did not see the question."""
    logit_offsets: tuple[float, ...] = ()
    """What is added to the log odds, by fold: of `pu_learning.fit_logit_offsets`."""

    def predict_probability(
        self, p: Floats, score: Floats, positive_min: Floats, positive_max: Floats, query_ids: Sequence[str]
    ) -> Floats:
        """p [n] after the teacher's logits [n] are heard; p itself where these are NaN or nobody listens."""
        is_scored = ~np.isnan(score) & ~np.isnan(positive_max) & ~np.isnan(p)
        if not self.models or not is_scored.any():
            return p
        features = build_stacking_features(
            p[is_scored], score[is_scored], positive_min[is_scored], positive_max[is_scored]
        )
        scored_query_ids = [query for query, one in zip(query_ids, is_scored, strict=True) if one]
        fold = assign_folds(scored_query_ids)
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
    """The opinion of a teacher about candidates of which `labels` [n] are hidden positives, which count `weights`
    [n]
    times, as many as their question has positives; p must not know them.

    All are [n]: p of folds that did not see the question, logits of the candidate and of its query's lowest and best
    *known* positive. Rows that the teacher was not asked about (NaN) are passed over.
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
            (), f"too few hidden positives lie where p is unsure ({metrics['n_held_out']}) to judge it by", metrics
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
        return StackedModel(
            stacked_models, f"it tells hidden positives apart: {losses}; {aucs}", metrics, logit_offsets
        )
    return StackedModel((), f"it adds nothing beyond luck: {losses}; {aucs}", metrics)


def raise_only(p: Floats, score: Floats, positive_max: Floats) -> Floats:
    """p [n], or where it is higher the odds on which the teacher prefers the candidate to the query's best positive.

    That is the sigmoid of the difference of the two logits (Bradley and Terry 1952, and the listwise loss of a group of
    two). It never lowers p, so nothing is emitted on the word of a teacher that was not tried on this table.
    """
    return np.where(np.isnan(score) | np.isnan(positive_max), p, np.fmax(p, sigmoid(score - positive_max))).astype(
        np.float32
    )


def build_stacking_features(p: Floats, score: Floats, positive_min: Floats, positive_max: Floats) -> Floats:
    """The columns TOLD [n, 4]; the first is ALONE."""
    columns = [compute_log_odds(p), score - positive_max, score - positive_min, score]
    out: Floats = np.stack(columns, axis=1).astype(np.float32)
    return out


def cluster_robust_mean(values: Doubles, weights: Doubles, query_ids: NDArray[np.object_]) -> tuple[float, float]:
    """The weighted mean of `values` [n] and its standard error, for rows that come in clusters, one a query."""
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
    """The chance that a hidden positive scores above another candidate, equal ones counted half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, score))


def _fit_folds(
    names: Sequence[str], features: Floats, labels: Bools, weights: Doubles, fold: Ints
) -> tuple[LogisticModel, ...]:
    """A model a fold, of the rows outside it."""
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
