"""From a classifier of held-out positives to the probability of an unlabelled positive.

A held-out positive is a false negative with a known label. Besides the held-out positives, the candidates of a query
contain unlabelled positives, which look the same: this is positive-unlabelled learning (Elkan and Noto, KDD 2008).

In a table's own data one of a query's m positives is held out at a time, so that the others are known as they are for
an unlabelled positive. It has weight m, on the assumption that as many positives are unlabelled as are known. Where
candidates are nothing but positives, the held-out ones then have half of the weight; `pu_correct` accounts for that.

Where labelled and unlabelled positives are mixed, and one of two known positives is held out, these weights expect too
many false negatives. So the log odds are lowered (`fit_logit_offset`) until the unlabelled positives that are expected
for the queries with held-out positives are no more than the number of held-out positives suggests. The log odds used
for that are of folds that were not fitted on these queries.
"""

import numpy as np

from stages.core.arrays import Bools, Doubles, Ints, sigmoid
from stages.mining.estimator.folds import get_training_masks

MISSING_PER_KNOWN_POSITIVE = 0.85
"""Unlabelled positives for each known one, at most. Measured on the five sets of pretrained_model.json, of which the
benchmark holds out half of the positives, rounded down."""
MIN_LOGIT_OFFSET = -5.0
"""Log odds are lowered by no more."""
MAX_PU_PROBABILITY = 0.95
"""The highest probability that `pu_correct` gives."""


def pu_correct(log_odds: Doubles) -> Doubles:
    """From the log odds of the weighted held-out positives to those of an unlabelled positive: both [n].

    At one point of the feature space h held-out positives (by weight), as many unlabelled ones and n others have odds
    of h : (h + n). A candidate that is not held out is an unlabelled positive with probability h / (h + n), which
    equals those odds.
    """
    p = np.minimum(np.exp(np.minimum(log_odds, 0.0)), MAX_PU_PROBABILITY)
    out: Doubles = np.log(p / (1 - p))
    return out


def pu_weight(p: Doubles, n_known: Doubles) -> Doubles:
    """The weight [n] of candidates that are not held out, for a query with `n_known` + 1 known positives.

    p [n] is their probability if `n_known` positives (1 or more) are known. With the densities f of a positive and g of
    the others it is r n_known f / (r n_known f + g), where r is MISSING_PER_KNOWN_POSITIVE. With one more known
    positive there are r (n_known + 1) f + g candidates at this point, which is 1 + p / n_known times as many.
    """
    out: Doubles = 1 / (1 + p / n_known)
    return out


def fit_logit_offsets(log_odds: Doubles, labels: Bools, n_known: Doubles, fold: Ints) -> tuple[float, ...]:
    """For each fold the `fit_logit_offset` of the rows [n] outside it."""
    return tuple(fit_logit_offset(log_odds[s], labels[s], n_known[s]) for s in get_training_masks(fold))


def fit_logit_offset(log_odds: Doubles, labels: Bools, n_known: Doubles) -> float:
    """What to add to log odds [n] so that they expect no more unlabelled positives than there are: 0 or less.

    `labels` [n] marks the held-out positives among the candidates of queries with `n_known` [n] other known positives.
    The number of unlabelled positives among the other rows is estimated as MISSING_PER_KNOWN_POSITIVE x `n_known`,
    summed over the held-out ones. If fewer are expected, the offset is 0: perhaps everything is labelled.
    """
    n_missing, is_other = MISSING_PER_KNOWN_POSITIVE * float(n_known[labels].sum()), ~labels
    other_log_odds, other_n_known = log_odds[is_other], n_known[is_other]

    def count_expected(offset: float) -> float:
        p = sigmoid(other_log_odds + offset)
        return float((p * pu_weight(p, other_n_known)).sum())

    low, high = MIN_LOGIT_OFFSET, 0.0
    if count_expected(high) <= n_missing:
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if count_expected(middle) > n_missing else (middle, high)
    return round(low, 3)
