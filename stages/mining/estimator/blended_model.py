"""The model of p_false_negative: the pretrained model, blended with models that are fitted on the table.

Some positives of queries with several are held out, and a logistic regression learns to find them among the candidates
(`stages.mining.candidates.features`). The table models have the log odds of the pretrained model as one more feature.
The log odds of both are averaged, with a weight that depends on how many held-out positives the table has. The table
models are cross-fitted, so that no query gets the prediction of a model that was fitted on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stages.core.arrays import Bools, Doubles, Floats, Ints, sigmoid
from stages.core.schemas import FEATURES
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.folds import assign_folds, can_fit_folds, get_training_masks
from stages.mining.estimator.logistic_model import LogisticModel
from stages.mining.estimator.pretrained_model import N_POSITIVES_INDEX, PretrainedModel
from stages.mining.estimator.pu_learning import fit_logit_offsets, pu_correct

N_HOLDOUT_ROUNDS = 3
"""At most so many positives of a query are held out, one in each round."""
TABLE_MODEL_SHRINKAGE = 100
"""With so many held-out positives the table models have half of the weight."""
TABLE_MODEL_C = 0.1
"""scikit-learn's C of the table models: the inverse weight of the L2 penalty."""
PRETRAINED_FEATURE = "pretrained_log_odds"
"""The log odds of the pretrained model, as a feature of the table models."""
NEAREST_QUERY_INDEX = FEATURES.index("nearest_query_similarity")


@dataclass(frozen=True)
class BlendedModel:
    """The pretrained model and, if the table has enough held-out positives, a table model for each fold."""

    pretrained_model: PretrainedModel
    table_models: tuple[LogisticModel, ...] = ()
    n_held_out_positives: int = 0
    """The held-out positives among the candidates that the table models were fitted on."""
    logit_offsets: tuple[float, ...] = ()
    """For each fold what is added to the log odds (`pu_learning.fit_logit_offsets`)."""

    @cached_property
    def table_weight(self) -> float:
        """The weight of the table models, from 0 to 1."""
        n = self.n_held_out_positives
        return n / (n + TABLE_MODEL_SHRINKAGE) if self.table_models else 0.0

    def predict_probability(self, features: Floats, fold: Ints) -> Floats:
        """p_false_negative [n] of features [n, len(FEATURES)] of queries in `fold` [n] (`folds.assign_folds`)."""
        return sigmoid(self.predict_log_odds(features, fold)).astype(np.float32)

    def predict_log_odds(self, features: Floats, fold: Ints) -> Doubles:
        """The log odds [n] of `predict_probability`."""
        pretrained_log_odds = self.pretrained_model.predict_log_odds(features)
        if not self.table_models:
            return pretrained_log_odds
        multi_positive_log_odds = _predict_multi_positive(self.pretrained_model, features)
        blended = np.empty(len(features))
        for number, model in enumerate(self.table_models):
            rows = fold == number
            table_log_odds = pu_correct(
                model.predict_log_odds(
                    stack_features(features[rows], multi_positive_log_odds[rows], model.feature_names)
                )
            )
            blended[rows] = self.table_weight * table_log_odds + (1 - self.table_weight) * pretrained_log_odds[rows]
        return blended + np.array(self.logit_offsets)[fold] if self.logit_offsets else blended


def fit_table_models(
    features: Floats,
    labels: Bools,
    weights: Doubles,
    match_keys: Sequence[str],
    pretrained_model: PretrainedModel,
) -> BlendedModel:
    """The blended model of a table.

    `features` [n, len(FEATURES)] are candidates of queries with these `match_keys` [n]; `labels` [n] marks the held-out
    positives among them, with their `weights` [n]. The result is the pretrained model alone if `folds.can_fit_folds` is
    false.
    """
    fold, n_held_out_positives = assign_folds(match_keys), int(labels.sum())
    if not can_fit_folds(labels, fold):
        return BlendedModel(pretrained_model)
    # all queries that the table models are fitted on have several positives
    multi_positive_log_odds = _predict_multi_positive(pretrained_model, features)
    weights = np.where(labels, weights, 1.0)
    table_models = []
    for training in get_training_masks(fold):
        for names in ((*FEATURES, PRETRAINED_FEATURE), (*TRANSFERABLE_FEATURES, PRETRAINED_FEATURE)):
            table = stack_features(features[training], multi_positive_log_odds[training], names)
            model = LogisticModel.fit(names, table, labels[training], weights[training], TABLE_MODEL_C)
            # A held-out positive has lost a query that it is a positive of. So the similarity to such a query may only
            # raise p; if it lowers p in the fit, it is left out.
            if "nearest_query_similarity" not in names or model.coef[NEAREST_QUERY_INDEX] >= 0:
                break
        table_models.append(model)
    uncalibrated = BlendedModel(pretrained_model, tuple(table_models), n_held_out_positives)
    n_known = np.exp(features[:, N_POSITIVES_INDEX].astype(np.float64))
    log_odds = uncalibrated.predict_log_odds(features, fold)
    return replace(uncalibrated, logit_offsets=fit_logit_offsets(log_odds, labels, n_known, fold))


def stack_features(features: Floats, pretrained_log_odds: Doubles, names: Sequence[str]) -> Floats:
    """The columns `names` of features [n, len(FEATURES)] and of PRETRAINED_FEATURE [n]."""
    columns = [
        pretrained_log_odds if name == PRETRAINED_FEATURE else features[:, FEATURES.index(name)] for name in names
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _predict_multi_positive(pretrained_model: PretrainedModel, features: Floats) -> Doubles:
    return pretrained_model.multi_positive.predict_log_odds(features[:, : len(TRANSFERABLE_FEATURES)])
