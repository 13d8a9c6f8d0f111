"""Second opinion: what a teacher's score does to p_false_negative, and whether it is listened to at all.

Where the table has hidden positives to learn from (`hiding.hide_one`), a logistic regression over p's log odds and the
teacher's margins is fitted on them, in the folds of `learned`, and stands next to one over p's log odds alone. If the
margins do not lower the log loss on questions that neither model saw, beyond what luck between questions does, the
teacher is not listened to: a small table's self-taught teacher often has nothing to add. Where nothing is hidden, a
teacher from elsewhere can only raise p (`raised`): what it takes for a positive is not emitted on the prior's word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.core.schemas import Summary
from stages.mining.estimator import model as learned
from stages.mining.estimator.model import Model
from stages.mining.verify.cross_encoder import Bools, Floats, log_odds, shares

ALONE = ("log_odds",)
TOLD = ("log_odds", "teacher_below_best", "teacher_below_lowest", "teacher")
STRENGTH = 1.0
"""Inverse weight of the L2 penalty (scikit-learn's C); there are four figures to weigh."""
SURE = 1.645
"""The loss must fall by so many of its standard errors over questions: by luck it does so once in twenty."""


@dataclass(frozen=True)
class Opinion:
    """A model a fold that weighs p and the teacher; none where the teacher is not listened to."""

    models: tuple[Model, ...]
    why: str
    """In words, with the figures: why it is listened to or not."""
    figures: Summary
    """hidden, candidates, auc_p, auc_teacher, auc_both, loss_p, loss_both, fall (of the loss) and its standard error
    fall_error: over folds that did not see the question."""
    levels: tuple[float, ...] = ()
    """What is added to the log odds, by fold: of `learned.levels`."""

    def probability(self, p: Floats, score: Floats, lowest: Floats, best: Floats, query_ids: Sequence[str]) -> Floats:
        """p [n] after the teacher's logits [n] are heard; p itself where these are NaN or nobody listens."""
        heard = ~np.isnan(score) & ~np.isnan(best) & ~np.isnan(p)
        if not self.models or not heard.any():
            return p
        rows = table(p[heard], score[heard], lowest[heard], best[heard])
        queries = [query for query, one in zip(query_ids, heard, strict=True) if one]
        fold = learned.folds(queries)
        found = shares(learned.missing(_by_fold(self.models, rows, fold)) + np.array(self.levels)[fold])
        out = p.astype(np.float32, copy=True)
        out[heard] = found
        return out


def fit(
    p: Floats, score: Floats, lowest: Floats, best: Floats, labels: Bools, weights: Floats, query_ids: Sequence[str]
) -> Opinion:
    """The opinion of a teacher about candidates of which `labels` [n] are hidden positives, which count `weights` [n]
    times, as many as their question has positives; p must not know them.

    All are [n]: p of folds that did not see the question, logits of the candidate and of its query's lowest and best
    *known* positive. Rows that the teacher was not asked about (NaN) are passed over.
    """
    heard = ~np.isnan(score) & ~np.isnan(best) & ~np.isnan(p)
    rows, labels = table(p[heard], score[heard], lowest[heard], best[heard]), labels[heard]
    queries = np.asarray(query_ids, dtype=object)[heard]
    fold = learned.folds(queries.tolist())
    found: Summary = {"hidden": int(labels.sum()), "candidates": len(labels)}
    if labels.sum() < learned.LEAST_FOUND or any(
        not 0 < labels[fold != number].sum() < (fold != number).sum() for number in range(learned.FOLDS)
    ):
        return Opinion((), f"too few hidden positives lie where p is unsure ({found['hidden']}) to judge it by", found)
    weight = np.where(labels, weights[heard], 1.0).astype(np.float64)
    alone, told = (_fit(names, rows, labels, weight, fold) for names in (ALONE, TOLD))
    before, after = _by_fold(alone, rows[:, : len(ALONE)], fold), _by_fold(told, rows, fold)
    fall, error = paired(loss(before, labels) - loss(after, labels), weight, queries)
    found |= {
        "auc_p": round(auc(rows[:, 0], labels), 4),
        "auc_teacher": round(auc(rows[:, 1], labels), 4),
        "auc_both": round(auc(after, labels), 4),
        "loss_p": round(float(np.average(loss(before, labels), weights=weight)), 5),
        "loss_both": round(float(np.average(loss(after, labels), weights=weight)), 5),
        "fall": round(fall, 5),
        "fall_error": round(error, 5),
    }
    losses = f"log loss {found['loss_both']:.4f} with it, {found['loss_p']:.4f} without"
    aucs = f"AUC {found['auc_teacher']:.3f} alone, {found['auc_p']:.3f} of p, {found['auc_both']:.3f} together"
    if fall > SURE * error:
        levels = learned.levels(learned.missing(after), labels, weights[heard].astype(np.float64) - 1, fold)
        return Opinion(told, f"it tells hidden positives apart: {losses}; {aucs}", found, levels)
    return Opinion((), f"it adds nothing beyond luck: {losses}; {aucs}", found)


def raised(p: Floats, score: Floats, best: Floats) -> Floats:
    """p [n], or where it is higher the odds on which the teacher prefers the candidate to the query's best positive.

    That is the sigmoid of the difference of the two logits (Bradley and Terry 1952, and the listwise loss of a group of
    two). It never lowers p, so nothing is emitted on the word of a teacher that was not tried on this table.
    """
    return np.where(np.isnan(score) | np.isnan(best), p, np.fmax(p, shares(score - best))).astype(np.float32)


def table(p: Floats, score: Floats, lowest: Floats, best: Floats) -> Floats:
    """The columns TOLD [n, 4]; the first is ALONE."""
    out: Floats = np.stack([log_odds(p), score - best, score - lowest, score], axis=1).astype(np.float32)
    return out


def paired(
    fall: NDArray[np.float64], weights: NDArray[np.float64], queries: NDArray[np.object_]
) -> tuple[float, float]:
    """The weighted mean of `fall` [n] and its standard error, for rows that come in clusters, one a query."""
    _, of = np.unique(queries.astype(str), return_inverse=True)
    total = np.bincount(of, fall * weights)
    size = np.bincount(of, weights)
    mean = float(total.sum() / size.sum())
    clusters = len(size)
    error = np.sqrt(np.square(total - mean * size).sum() * clusters / max(clusters - 1, 1)) / size.sum()
    return mean, float(error)


def auc(score: NDArray[np.floating], labels: Bools) -> float:
    """The chance that a hidden positive scores above another candidate, equal ones counted half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, score))


def _fit(
    names: Sequence[str], rows: Floats, labels: Bools, weights: NDArray[np.float64], fold: NDArray[np.int64]
) -> tuple[Model, ...]:
    """A model a fold, of the rows outside it."""
    seen = [fold != number for number in range(learned.FOLDS)]
    return tuple(Model.fit(names, rows[s, : len(names)], labels[s], weights[s], STRENGTH) for s in seen)


def _by_fold(models: Sequence[Model], rows: Floats, fold: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.empty(len(rows))
    for number, model in enumerate(models):
        out[fold == number] = model.log_odds(rows[fold == number])
    return out


def loss(odds: NDArray[np.float64], labels: Bools) -> NDArray[np.float64]:
    """The log loss of each row [n]."""
    out: NDArray[np.float64] = np.logaddexp(0, np.where(labels, -odds, odds))
    return out
