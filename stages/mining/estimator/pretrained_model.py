"""The model of false negatives that is shipped: fitted on public data sets (`prep bench negatives --write-model`).

It is two models: one for queries with a single known positive, fitted with all positives but one held out, and one for
queries with several, fitted with half of the positives held out. With a single positive fewer features are informative,
and more positives are missing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.core.arrays import Bools, Doubles, Floats
from stages.core.schemas import FEATURES
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.logistic_model import LogisticModel, model_from_dict

PRETRAINED_MODEL_PATH = Path(__file__).with_name("pretrained_model.json")
N_POSITIVES_INDEX = FEATURES.index("log_n_positives")


@dataclass(frozen=True)
class PretrainedModel:
    """A model for queries with one known positive, and one for queries with several."""

    single_positive: LogisticModel
    multi_positive: LogisticModel

    def split_rows_by_model(self, features: Floats) -> list[tuple[LogisticModel, Bools]]:
        """Each model, and the rows [n] of features [n, len(FEATURES)] that it is for."""
        is_single = features[:, N_POSITIVES_INDEX] == 0
        return [(self.single_positive, is_single), (self.multi_positive, ~is_single)]

    def predict_log_odds(self, features: Floats) -> Doubles:
        """The log odds [n] of features [n, len(FEATURES)]."""
        out = np.empty(len(features))
        for model, rows in self.split_rows_by_model(features):
            out[rows] = model.predict_log_odds(features[rows, : len(TRANSFERABLE_FEATURES)])
        return out

    def compute_feature_shift(self, features: Floats) -> Doubles:
        """How far features [n, len(FEATURES)] are from the data that the models were fitted on.

        For each of TRANSFERABLE_FEATURES: the mean over all rows of the distance from the mean of the row's model, in
        standard deviations of that model, as an absolute value. So a few queries with several positives among many with
        one count in proportion.
        """
        shift = np.zeros(len(TRANSFERABLE_FEATURES))
        for model, rows in self.split_rows_by_model(features):
            transferable = features[rows, : len(TRANSFERABLE_FEATURES)]
            shift += ((transferable - np.array(model.mean)) / np.array(model.scale)).sum(axis=0)
        return np.abs(shift) / max(len(features), 1)


def read_pretrained_model(excluded_digest: str | None = None) -> PretrainedModel:
    """The shipped model; with the digest of one of its data sets, the model that was fitted on the others alone."""
    content = json.loads(PRETRAINED_MODEL_PATH.read_text(encoding="utf-8"))
    found = next(
        (models for models in content["leave_one_out"] if models["digest"] == excluded_digest), content["all_sets"]
    )
    return PretrainedModel(model_from_dict(found["single_positive"]), model_from_dict(found["multi_positive"]))


def fit_pretrained_model(datasets: Sequence[tuple[Floats, Bools]]) -> LogisticModel:
    """One model of several data sets: (features [n, len(FEATURES)], labels [n]) of each, all with the same weight."""
    table = np.concatenate([features[:, : len(TRANSFERABLE_FEATURES)] for features, _ in datasets])
    labels = np.concatenate([label for _, label in datasets])
    weights = np.concatenate([np.full(len(label), 1 / len(label)) for _, label in datasets])
    return LogisticModel.fit(TRANSFERABLE_FEATURES, table, labels, weights * len(weights) / weights.sum(), 1.0)
