"""Folds of cross-fitting: each query gets the prediction of a model that was not fitted on it or on a paraphrase of
it."""

from collections.abc import Sequence

import numpy as np

from stages.core.arrays import Bools, Ints
from stages.core.hashing import stable_hash

N_FOLDS = 5
MIN_HELD_OUT_POSITIVES = 30
"""With fewer held-out positives among the candidates no model is fitted."""


def assign_folds(match_keys: Sequence[str]) -> Ints:
    """The fold [n] of each query, by a hash of its `match_key`: paraphrases are in the same fold."""
    fold_by_key = {key: stable_hash(0, "fold", key) % N_FOLDS for key in set(match_keys)}
    return np.array([fold_by_key[key] for key in match_keys], np.int64)


def get_training_masks(fold: Ints) -> list[Bools]:
    """For each fold the rows [n] that its model is fitted on: those of the other folds."""
    return [fold != number for number in range(N_FOLDS)]


def can_fit_folds(labels: Bools, fold: Ints) -> bool:
    """Whether there are enough positive labels [n] in all, and both labels among the training rows of each fold."""
    has_both = all(0 < labels[training].sum() < training.sum() for training in get_training_masks(fold))
    return bool(labels.sum() >= MIN_HELD_OUT_POSITIVES) and has_both
