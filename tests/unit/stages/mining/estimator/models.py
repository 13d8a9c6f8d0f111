"""Models with constant predictions, for tests."""

from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.logistic_model import LogisticModel
from stages.mining.estimator.pretrained_model import PretrainedModel


def make_model(intercept: float, mean: float = 0.0, scale: float = 1.0) -> LogisticModel:
    """A model of TRANSFERABLE_FEATURES whose log odds are `intercept` everywhere."""
    n = len(TRANSFERABLE_FEATURES)
    return LogisticModel(TRANSFERABLE_FEATURES, (mean,) * n, (scale,) * n, (0.0,) * n, intercept)


CONSTANT = PretrainedModel(make_model(-2.0), make_model(-2.0))
"""Its log odds are -2 everywhere."""
