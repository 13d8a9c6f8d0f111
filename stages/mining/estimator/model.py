"""The learned mask: how probable it is that a candidate is a false negative, learned from positives that were hidden.

Some positives of questions that have several are hidden, and a logistic regression learns to find them among the
candidates from `features`. Two models speak: the *prior*, fitted in this way on public data sets and shipped as
pretrained_model.json, and, where the table has questions with several positives, its *own*, which takes the prior's
word as one more feature. Their log odds are mixed by how much the table could show. The own model is fitted in folds,
so that no question is judged by a model that saw it.

The prior is two models: one for questions with a single known positive, fitted where all but one were hidden, and one
for those with several, fitted where half were. With one positive there is less to measure by, and more is missing.

A hidden positive is a false negative whose label we know. A table's own positives are only what somebody labelled:
one of a question's m positives is hidden at a time, so that the others stand to it as all of them stand to a missing
one, and it counts m times, on the assumption that as many are missing as are known. These missing ones lie among the
candidates too, without a label, and look the same; where nothing else does, the hidden ones come to half of the weight.
`pu_correct` takes that into account (positive-unlabelled learning: Elkan and Noto, KDD 2008).

Where what is labelled is mixed with what is not, and only one of two known positives is left, those weights expect too
many. So the log odds are lowered last (`fit_logit_offset`), until on the hidden positives' own questions, judged by
folds that did not see them, no more missing ones are expected than the hidden ones that were found say there are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.arrays import Bools, Doubles, Floats, Ints, sigmoid
from stages.core.hashing import stable_hash
from stages.core.schemas import FEATURES
from stages.mining.candidates.features import TRANSFERABLE_FEATURES

PRETRAINED_MODEL_PATH = Path(__file__).with_name("pretrained_model.json")

N_FOLDS = 5
MIN_HIDDEN_POSITIVES = 30
"""With fewer hidden positives among the candidates than these, the table's own model is not asked."""
TABLE_MODEL_SHRINKAGE = 100
"""With so many, it has half of the say."""
MISSING_PER_KNOWN_POSITIVE = 0.85
"""Positives that are missing for one that is known, at most. Measured on the five sets of
pretrained_model.json, of which the bench hides a half, rounded down."""
MIN_LOGIT_OFFSET = -5.0
"""The most that log odds are lowered."""
N_HOLDOUT_ROUNDS = 3
"""Times that another positive of a question is hidden."""
MAX_TABLE_MODEL_PROBABILITY = 0.95
"""The most that the table's own model claims."""
Z_SCORE_CLIP = 5.0
"""Features count up to so many standard deviations."""
TABLE_MODEL_C = 0.1
"""Inverse weight of the L2 penalty (scikit-learn's C) of the table's own model."""
MIN_FEATURE_STD = 1e-5
"""A feature with a smaller standard deviation is taken for constant, and isn't scaled."""
NEAREST_QUERY_INDEX, N_POSITIVES_INDEX = FEATURES.index("nearest_query_similarity"), FEATURES.index("log_n_positives")


@dataclass(frozen=True)
class LogisticModel:
    """A logistic regression on standardised features; as data, so that it can be read and shipped."""

    feature_names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coef: tuple[float, ...]
    intercept: float

    def predict_log_odds(self, features: Floats) -> Doubles:
        """Of each row of `features` [n, len(feature_names)]: float64 [n]."""
        out: Doubles = standardise(features, np.array(self.mean), np.array(self.scale)) @ np.array(self.coef)
        return out + self.intercept

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        features: Floats,
        labels: Bools,
        weights: Doubles,
        inverse_regularisation: float,
    ) -> "LogisticModel":
        """Fit on `features` [n, len(names)]: labels [n] are true for hidden positives."""
        from sklearn.linear_model import LogisticRegression

        mean = features.mean(axis=0, dtype=np.float64)
        scale = features.std(axis=0, dtype=np.float64)
        scale[scale < MIN_FEATURE_STD] = 1.0
        regression = LogisticRegression(C=inverse_regularisation, max_iter=1000)
        regression.fit(standardise(features, mean, scale), labels, sample_weight=weights)
        coef = regression.coef_[0].tolist()
        return cls(
            tuple(names), tuple(mean.tolist()), tuple(scale.tolist()), tuple(coef), float(regression.intercept_[0])
        )


@dataclass(frozen=True)
class PretrainedModel:
    """What public data sets taught."""

    single_positive: LogisticModel
    """For questions with a single known positive."""
    multi_positive: LogisticModel

    def split_rows_by_model(self, features: Floats) -> list[tuple[LogisticModel, Bools]]:
        """Each model, and which of features [n, len(FEATURES)] it judges [n]."""
        single = features[:, N_POSITIVES_INDEX] == 0
        return [(self.single_positive, single), (self.multi_positive, ~single)]

    def predict_log_odds(self, features: Floats) -> Doubles:
        """Of features [n, len(FEATURES)]: float64 [n]."""
        out = np.empty(len(features))
        for model, here in self.split_rows_by_model(features):
            out[here] = model.predict_log_odds(features[here, : len(TRANSFERABLE_FEATURES)])
        return out

    def compute_feature_shift(self, features: Floats) -> Doubles:
        """How far features [n, len(FEATURES)] lie off what the models that judge them were fitted on, in standard
        deviations, each row by its own model and in the mean over all: [len(GENERAL)]. So a few questions with several
        positives among many with one count for no more than they are."""
        shift = np.zeros(len(TRANSFERABLE_FEATURES))
        for model, here in self.split_rows_by_model(features):
            shift += (
                (features[here, : len(TRANSFERABLE_FEATURES)] - np.array(model.mean)) / np.array(model.scale)
            ).sum(axis=0)
        return np.abs(shift) / max(len(features), 1)


@dataclass(frozen=True)
class BlendedModel:
    """The prior, and the table's own models by fold where it could show enough."""

    pretrained_model: PretrainedModel
    table_models: tuple[LogisticModel, ...] = ()
    n_hidden_positives: int = 0
    """Hidden positives among the candidates that the own models learned from."""
    logit_offsets: tuple[float, ...] = ()
    """What is added to the log odds, by fold: of `fit_logit_offsets`."""

    @cached_property
    def table_weight(self) -> float:
        """The own models' say, 0 to 1."""
        return self.n_hidden_positives / (self.n_hidden_positives + TABLE_MODEL_SHRINKAGE) if self.table_models else 0.0

    def predict_probability(self, features: Floats, fold: Ints) -> Floats:
        """p_false_negative [n] of features [n, len(FEATURES)]; each question is judged by a model that did not see it.

        `fold` [n] is that of `assign_folds`: what restates one another has the same one, as it has in
        `fit_table_models`.
        """
        return sigmoid(self.predict_log_odds(features, fold)).astype(np.float32)

    def predict_log_odds(self, features: Floats, fold: Ints) -> Doubles:
        """Those of `predict_probability`."""
        pretrained_log_odds = self.pretrained_model.predict_log_odds(features)
        if not self.table_models:
            return pretrained_log_odds
        multi_positive_log_odds = self.pretrained_model.multi_positive.predict_log_odds(
            features[:, : len(TRANSFERABLE_FEATURES)]
        )
        blended = np.empty(len(features))
        for number, model in enumerate(self.table_models):
            here = fold == number
            table_log_odds = pu_correct(
                model.predict_log_odds(
                    stack_features(features[here], multi_positive_log_odds[here], model.feature_names)
                )
            )
            blended[here] = self.table_weight * table_log_odds + (1 - self.table_weight) * pretrained_log_odds[here]
        return blended + np.array(self.logit_offsets)[fold] if self.logit_offsets else blended


def pu_correct(log_odds: Doubles) -> Doubles:
    """From the log odds of the hidden positives' weight to those of being a missing one: both [n].

    At one place h hidden ones (by weight), as many missing ones and n others have odds of h : (h + n); a candidate
    there that is not hidden is a missing one with probability h / (h + n), which is those odds.
    """
    p = np.minimum(np.exp(np.minimum(log_odds, 0.0)), MAX_TABLE_MODEL_PROBABILITY)
    out: Doubles = np.log(p / (1 - p))
    return out


def pu_weight(p: Doubles, n_known: Doubles) -> Doubles:
    """How much a candidate that is not hidden counts, of a question that showed one more positive than `n_known`: [n].

    p [n] is what it has where `n_known` positives (1 or more) are known: with the density f of a positive and n of the
    others, r known f / (r known f + n), where r is MISSING. Here one more was known, so r (known + 1) f + n lie at its
    place, which is 1 + p / known times as many.
    """
    out: Doubles = 1 / (1 + p / n_known)
    return out


def fit_logit_offsets(log_odds: Doubles, labels: Bools, n_known: Doubles, fold: Ints) -> tuple[float, ...]:
    """Of each fold the `fit_logit_offset` of all rows [n] outside it."""
    in_training = [fold != number for number in range(N_FOLDS)]
    return tuple(fit_logit_offset(log_odds[s], labels[s], n_known[s]) for s in in_training)


def fit_logit_offset(log_odds: Doubles, labels: Bools, n_known: Doubles) -> float:
    """What to add to log odds [n] so that they expect no more missing positives than there are, by `labels` [n]: 0
    or
    less.

    Each of these is a positive that was hidden, and found among the candidates of a question of which `n_known` [n] are
    left; of MISSING x known others one would find as many. They are expected among the rows that are no labels. Where
    fewer are expected there, nothing is added: where people labelled all that there is, nothing is missing.
    """
    n_missing, others = MISSING_PER_KNOWN_POSITIVE * float(n_known[labels].sum()), ~labels
    odds, left = log_odds[others], n_known[others]

    def expected(added: float) -> float:
        p = sigmoid(odds + added)
        return float((p * pu_weight(p, left)).sum())

    low, high = MIN_LOGIT_OFFSET, 0.0
    if expected(high) <= n_missing:
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if expected(middle) > n_missing else (middle, high)
    return round(low, 3)


def fit_table_models(
    features: Floats,
    labels: Bools,
    weights: Doubles,
    match_keys: Sequence[str],
    pretrained_model: PretrainedModel,
) -> BlendedModel:
    """The estimator of a table from candidates [n, len(FEATURES)] of which `labels` [n] are hidden positives,
    which
    count `weights` [n] times.

    It is the prior alone where fewer than LEAST_FOUND of them are true, or a fold has only one kind to learn from.
    """
    fold = assign_folds(match_keys)
    n_hidden_positives = int(labels.sum())
    if n_hidden_positives < MIN_HIDDEN_POSITIVES or any(
        not 0 < labels[fold != number].sum() < (fold != number).sum() for number in range(N_FOLDS)
    ):
        return BlendedModel(pretrained_model)
    multi_positive_log_odds = pretrained_model.multi_positive.predict_log_odds(
        features[:, : len(TRANSFERABLE_FEATURES)]
    )  # it is questions with several that teach
    weights = np.where(labels, weights, 1.0)
    table_models = []
    for number in range(N_FOLDS):
        in_training = fold != number
        for names in ((*FEATURES, "pretrained_log_odds"), (*TRANSFERABLE_FEATURES, "pretrained_log_odds")):
            table = stack_features(features[in_training], multi_positive_log_odds[in_training], names)
            model = LogisticModel.fit(names, table, labels[in_training], weights[in_training], TABLE_MODEL_C)
            # hiding a positive leaves it without an owner, so an owner may speak for a candidate and never against it
            if "nearest_query_similarity" not in names or model.coef[NEAREST_QUERY_INDEX] >= 0:
                break
        table_models.append(model)
    uncalibrated = BlendedModel(pretrained_model, tuple(table_models), n_hidden_positives)
    n_known = np.exp(features[:, N_POSITIVES_INDEX].astype(np.float64))
    return replace(
        uncalibrated,
        logit_offsets=fit_logit_offsets(uncalibrated.predict_log_odds(features, fold), labels, n_known, fold),
    )


def assign_folds(match_keys: Sequence[str]) -> Ints:
    """The fold of each question, by a hash of its name: [n]."""
    fold_by_key = {question: stable_hash(0, "fold", question) % N_FOLDS for question in set(match_keys)}
    return np.array([fold_by_key[question] for question in match_keys], np.int64)


def stack_features(features: Floats, pretrained_log_odds: Doubles, names: Sequence[str]) -> Floats:
    """The columns `names` of features [n, len(FEATURES)], where "pretrained_log_odds" is the prior's log odds [n]."""
    parts = [
        pretrained_log_odds if name == "pretrained_log_odds" else features[:, FEATURES.index(name)] for name in names
    ]
    return np.stack(parts, axis=1).astype(np.float32)


def standardise(features: Floats, mean: Doubles, scale: Doubles) -> Doubles:
    """`features` [n, k] in standard deviations, at most CLIP."""
    out: Doubles = np.clip((features - mean) / scale, -Z_SCORE_CLIP, Z_SCORE_CLIP)
    return out


def read_pretrained_model(excluded_digest: str | None = None) -> PretrainedModel:
    """The shipped prior; `excluded_digest` the digest of a data set: one that was fitted on the others alone."""
    content = json.loads(PRETRAINED_MODEL_PATH.read_text(encoding="utf-8"))
    found = next(
        (models for models in content["leave_one_out"] if models["digest"] == excluded_digest), content["all_sets"]
    )
    return PretrainedModel(model_from_dict(found["single_positive"]), model_from_dict(found["multi_positive"]))


def model_from_dict(values: Mapping[str, Any]) -> LogisticModel:
    """A model as `model_to_dict` gave it."""
    names, mean, scale, coef = (tuple(values[name]) for name in ("feature_names", "mean", "scale", "coef"))
    return LogisticModel(names, mean, scale, coef, values["intercept"])


def fit_pretrained_model(datasets: Sequence[tuple[Floats, Bools]]) -> LogisticModel:
    """One model of several data sets' (features [n, len(FEATURES)], labels [n]), each with the same say."""
    table = np.concatenate([features[:, : len(TRANSFERABLE_FEATURES)] for features, _ in datasets])
    labels = np.concatenate([label for _, label in datasets])
    weights = np.concatenate([np.full(len(label), 1 / len(label)) for _, label in datasets])
    return LogisticModel.fit(TRANSFERABLE_FEATURES, table, labels, weights * len(weights) / weights.sum(), 1.0)


def model_to_dict(model: LogisticModel) -> dict[str, object]:
    """A model as it stands in pretrained_model.json, with figures a person can read."""
    return {
        name: [round(x, 6) for x in v] if name in ("mean", "scale", "coef") else v for name, v in asdict(model).items()
    }
