"""A logistic regression as plain numbers, so that it can be read, stored and shipped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stages.core.arrays import Bools, Doubles, Floats

Z_SCORE_CLIP = 5.0
"""Standardised features are clipped to so many standard deviations."""
MIN_FEATURE_STD = 1e-5
"""A feature with a smaller standard deviation is constant and is not scaled."""


@dataclass(frozen=True)
class LogisticModel:
    """A logistic regression on standardised features."""

    feature_names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coef: tuple[float, ...]
    intercept: float

    def predict_log_odds(self, features: Floats) -> Doubles:
        """The log odds [n] of `features` [n, len(feature_names)]."""
        out: Doubles = standardise(features, np.array(self.mean), np.array(self.scale)) @ np.array(self.coef)
        return out + self.intercept

    @classmethod
    def fit(
        cls,
        feature_names: Sequence[str],
        features: Floats,
        labels: Bools,
        weights: Doubles,
        inverse_regularisation: float,
    ) -> "LogisticModel":
        """Fit on `features` [n, len(feature_names)] with labels [n] and sample weights [n].

        `inverse_regularisation` is scikit-learn's C, the inverse weight of the L2 penalty.
        """
        from sklearn.linear_model import LogisticRegression

        mean = features.mean(axis=0, dtype=np.float64)
        scale = features.std(axis=0, dtype=np.float64)
        scale[scale < MIN_FEATURE_STD] = 1.0
        regression = LogisticRegression(C=inverse_regularisation, max_iter=1000)
        regression.fit(standardise(features, mean, scale), labels, sample_weight=weights)
        return cls(
            tuple(feature_names),
            tuple(mean.tolist()),
            tuple(scale.tolist()),
            tuple(regression.coef_[0].tolist()),
            float(regression.intercept_[0]),
        )


def standardise(features: Floats, mean: Doubles, scale: Doubles) -> Doubles:
    """`features` [n, k] as z-scores, clipped to Z_SCORE_CLIP."""
    out: Doubles = np.clip((features - mean) / scale, -Z_SCORE_CLIP, Z_SCORE_CLIP)
    return out


def model_to_dict(model: LogisticModel) -> dict[str, object]:
    """A model for JSON, with rounded numbers that a person can read."""
    return {
        name: [round(x, 6) for x in value] if name in ("mean", "scale", "coef") else value
        for name, value in asdict(model).items()
    }


def model_from_dict(values: Mapping[str, Any]) -> LogisticModel:
    """The model of a result of `model_to_dict`."""
    names, mean, scale, coef = (tuple(values[name]) for name in ("feature_names", "mean", "scale", "coef"))
    return LogisticModel(names, mean, scale, coef, values["intercept"])
