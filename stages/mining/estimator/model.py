"""The learned mask: how probable it is that a candidate is a false negative, learned from positives that were hidden.

Some positives of questions that have several are hidden, and a logistic regression learns to find them among the
candidates from `features`. Two models speak: the *prior*, fitted in this way on public data sets and shipped as
prior.json, and, where the table has questions with several positives, its *own*, which takes the prior's word as one
more feature. Their log odds are mixed by how much the table could show. The own model is fitted in folds, so that no
question is judged by a model that saw it.

The prior is two models: one for questions with a single known positive, fitted where all but one were hidden, and one
for those with several, fitted where half were. With one positive there is less to measure by, and more is missing.

A hidden positive is a false negative whose label we know. A table's own positives are only what somebody labelled:
one of a question's m positives is hidden at a time, so that the others stand to it as all of them stand to a missing
one, and it counts m times, on the assumption that as many are missing as are known. These missing ones lie among the
candidates too, without a label, and look the same; where nothing else does, the hidden ones come to half of the weight.
`missing` takes that into account (positive-unlabelled learning: Elkan and Noto, KDD 2008).

Where what is labelled is mixed with what is not, and only one of two known positives is left, those weights expect too
many. So the log odds are lowered last (`level`), until on the hidden positives' own questions, judged by folds that did
not see them, no more missing ones are expected than the hidden ones that were found say there are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.hashing import draw
from stages.core.schemas import FEATURES
from stages.mining.candidates.features import GENERAL

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
PRIOR = Path(__file__).with_name("prior.json")

FOLDS = 5
LEAST_FOUND = 30
"""With fewer hidden positives among the candidates than these, the table's own model is not asked."""
TRUST = 100
"""With so many, it has half of the say."""
MISSING = 0.85
"""Positives that are missing for one that is known, at most. Looked at on the five sets of prior.json, of which the
bench hides a half, rounded down."""
LOWEST = -5.0
"""The most that log odds are lowered."""
ROUNDS = 3
"""Times that another positive of a question is hidden."""
CEILING = 0.95
"""The most that the table's own model claims."""
CLIP = 5.0
"""Features count up to so many standard deviations."""
STRENGTH = 0.1
"""Inverse weight of the L2 penalty (scikit-learn's C) of the table's own model."""
LEAST = 1e-5
"""A feature with a smaller standard deviation is taken for constant, and isn't scaled."""
OWNER, ANCHORS = FEATURES.index("owner_like"), FEATURES.index("log_anchors")


@dataclass(frozen=True)
class Model:
    """A logistic regression on standardised features; as data, so that it can be read and shipped."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float

    def log_odds(self, table: Floats) -> Doubles:
        """Of each row of `table` [n, len(names)]: float64 [n]."""
        out: Doubles = standardised(table, np.array(self.mean), np.array(self.scale)) @ np.array(self.weight)
        return out + self.bias

    @classmethod
    def fit(
        cls, names: Sequence[str], table: Floats, labels: NDArray[np.bool_], weights: Doubles, strength: float
    ) -> "Model":
        """Fit on `table` [n, len(names)]: labels [n] are true for hidden positives."""
        from sklearn.linear_model import LogisticRegression

        mean = table.mean(axis=0, dtype=np.float64)
        scale = table.std(axis=0, dtype=np.float64)
        scale[scale < LEAST] = 1.0
        found = LogisticRegression(C=strength, max_iter=1000)
        found.fit(standardised(table, mean, scale), labels, sample_weight=weights)
        weight = found.coef_[0].tolist()
        return cls(tuple(names), tuple(mean.tolist()), tuple(scale.tolist()), tuple(weight), float(found.intercept_[0]))


@dataclass(frozen=True)
class Prior:
    """What public data sets taught."""

    one: Model
    """For questions with a single known positive."""
    several: Model

    def parts(self, features: Floats) -> list[tuple[Model, NDArray[np.bool_]]]:
        """Each model, and which of features [n, len(FEATURES)] it judges [n]."""
        single = features[:, ANCHORS] == 0
        return [(self.one, single), (self.several, ~single)]

    def log_odds(self, features: Floats) -> Doubles:
        """Of features [n, len(FEATURES)]: float64 [n]."""
        out = np.empty(len(features))
        for model, here in self.parts(features):
            out[here] = model.log_odds(features[here, : len(GENERAL)])
        return out

    def strange(self, features: Floats) -> Doubles:
        """How far features [n, len(FEATURES)] lie off what the models that judge them were fitted on, in standard
        deviations, each row by its own model and in the mean over all: [len(GENERAL)]. So a few questions with several
        positives among many with one count for no more than they are."""
        off = np.zeros(len(GENERAL))
        for model, here in self.parts(features):
            off += ((features[here, : len(GENERAL)] - np.array(model.mean)) / np.array(model.scale)).sum(axis=0)
        return np.abs(off) / max(len(features), 1)


@dataclass(frozen=True)
class Estimator:
    """The prior, and the table's own models by fold where it could show enough."""

    prior: Prior
    own: tuple[Model, ...] = ()
    found: int = 0
    """Hidden positives among the candidates that the own models learned from."""
    levels: tuple[float, ...] = ()
    """What is added to the log odds, by fold: of `levels`."""

    @cached_property
    def share(self) -> float:
        """The own models' say, 0 to 1."""
        return self.found / (self.found + TRUST) if self.own else 0.0

    def probability(self, features: Floats, fold: Ints) -> Floats:
        """p_false_negative [n] of features [n, len(FEATURES)]; each question is judged by a model that did not see it.

        `fold` [n] is that of `folds`: what restates one another has the same one, as it has in `fit_own`.
        """
        out: Floats = (1 / (1 + np.exp(-self.log_odds(features, fold)))).astype(np.float32)
        return out

    def log_odds(self, features: Floats, fold: Ints) -> Doubles:
        """Those of `probability`."""
        general = self.prior.log_odds(features)
        if not self.own:
            return general
        word = self.prior.several.log_odds(features[:, : len(GENERAL)])
        mixed = np.empty(len(features))
        for number, model in enumerate(self.own):
            here = fold == number
            own = missing(model.log_odds(columns(features[here], word[here], model.names)))
            mixed[here] = self.share * own + (1 - self.share) * general[here]
        return mixed + np.array(self.levels)[fold] if self.levels else mixed


def missing(log_odds: Doubles) -> Doubles:
    """From the log odds of the hidden positives' weight to those of being a missing one: both [n].

    At one place h hidden ones (by weight), as many missing ones and n others have odds of h : (h + n); a candidate
    there that is not hidden is a missing one with probability h / (h + n), which is those odds.
    """
    p = np.minimum(np.exp(np.minimum(log_odds, 0.0)), CEILING)
    out: Doubles = np.log(p / (1 - p))
    return out


def counted(p: Doubles, known: Doubles) -> Doubles:
    """How much a candidate that is not hidden counts, of a question that showed one more positive than `known`: [n].

    p [n] is what it has where `known` positives (1 or more) are known: with the density f of a positive and n of the
    others, r known f / (r known f + n), where r is MISSING. Here one more was known, so r (known + 1) f + n lie at its
    place, which is 1 + p / known times as many.
    """
    out: Doubles = 1 / (1 + p / known)
    return out


def levels(log_odds: Doubles, labels: NDArray[np.bool_], known: Doubles, fold: Ints) -> tuple[float, ...]:
    """Of each fold the `level` of all rows [n] outside it."""
    seen = [fold != number for number in range(FOLDS)]
    return tuple(level(log_odds[s], labels[s], known[s]) for s in seen)


def level(log_odds: Doubles, labels: NDArray[np.bool_], known: Doubles) -> float:
    """What to add to log odds [n] so that they expect no more missing positives than there are, by `labels` [n]: 0 or
    less.

    Each of these is a positive that was hidden, and found among the candidates of a question of which `known` [n] are
    left; of MISSING x known others one would find as many. They are expected among the rows that are no labels. Where
    fewer are expected there, nothing is added: where people labelled all that there is, nothing is missing.
    """
    wanted, others = MISSING * float(known[labels].sum()), ~labels
    odds, left = log_odds[others], known[others]

    def expected(added: float) -> float:
        p = 1 / (1 + np.exp(-odds - added))
        return float((p * counted(p, left)).sum())

    low, high = LOWEST, 0.0
    if expected(high) <= wanted:
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if expected(middle) > wanted else (middle, high)
    return round(low, 3)


def fit_own(
    features: Floats, labels: NDArray[np.bool_], weights: Doubles, questions: Sequence[str], prior: Prior
) -> Estimator:
    """The estimator of a table from candidates [n, len(FEATURES)] of which `labels` [n] are hidden positives, which
    count `weights` [n] times.

    It is the prior alone where fewer than LEAST_FOUND of them are true, or a fold has only one kind to learn from.
    """
    fold = folds(questions)
    found = int(labels.sum())
    if found < LEAST_FOUND or any(
        not 0 < labels[fold != number].sum() < (fold != number).sum() for number in range(FOLDS)
    ):
        return Estimator(prior)
    word = prior.several.log_odds(features[:, : len(GENERAL)])  # it is questions with several that teach
    weights = np.where(labels, weights, 1.0)
    own = []
    for number in range(FOLDS):
        seen = fold != number
        for names in ((*FEATURES, "prior"), (*GENERAL, "prior")):
            table = columns(features[seen], word[seen], names)
            model = Model.fit(names, table, labels[seen], weights[seen], STRENGTH)
            # hiding a positive leaves it without an owner, so an owner may speak for a candidate and never against it
            if "owner_like" not in names or model.weight[OWNER] >= 0:
                break
        own.append(model)
    untold = Estimator(prior, tuple(own), found)
    known = np.exp(features[:, ANCHORS].astype(np.float64))
    return replace(untold, levels=levels(untold.log_odds(features, fold), labels, known, fold))


def folds(questions: Sequence[str]) -> Ints:
    """The fold of each question, by a hash of its name: [n]."""
    known = {question: draw(0, "fold", question) % FOLDS for question in set(questions)}
    return np.array([known[question] for question in questions], np.int64)


def columns(features: Floats, prior: Doubles, names: Sequence[str]) -> Floats:
    """The columns `names` of features [n, len(FEATURES)], where "prior" is the prior's log odds [n]."""
    parts = [prior if name == "prior" else features[:, FEATURES.index(name)] for name in names]
    return np.stack(parts, axis=1).astype(np.float32)


def standardised(table: Floats, mean: Doubles, scale: Doubles) -> Doubles:
    """`table` [n, k] in standard deviations, at most CLIP."""
    out: Doubles = np.clip((table - mean) / scale, -CLIP, CLIP)
    return out


def read_prior(without: str | None = None) -> Prior:
    """The shipped prior; `without` the digest of a data set: one that was fitted on the others alone."""
    held = json.loads(PRIOR.read_text(encoding="utf-8"))
    found = next((models for models in held["without"] if models["digest"] == without), held["all"])
    return Prior(read(found["one"]), read(found["several"]))


def read(model: Mapping[str, Any]) -> Model:
    """A model as `written` gave it."""
    names, mean, scale, weight = (tuple(model[name]) for name in ("names", "mean", "scale", "weight"))
    return Model(names, mean, scale, weight, model["bias"])


def fit_prior(sets: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> Model:
    """One model of several data sets' (features [n, len(FEATURES)], labels [n]), each with the same say."""
    table = np.concatenate([features[:, : len(GENERAL)] for features, _ in sets])
    labels = np.concatenate([label for _, label in sets])
    weights = np.concatenate([np.full(len(label), 1 / len(label)) for _, label in sets])
    return Model.fit(GENERAL, table, labels, weights * len(weights) / weights.sum(), 1.0)


def written(model: Model) -> dict[str, object]:
    """A model as it stands in prior.json, with figures a person can read."""
    return {
        name: [round(x, 6) for x in v] if name in ("mean", "scale", "weight") else v
        for name, v in asdict(model).items()
    }
