"""The logistic regression by hand."""

import numpy as np
import pytest

from stages.mining.estimator.logistic_model import LogisticModel, model_from_dict, model_to_dict


def test_log_odds_by_hand() -> None:
    model = LogisticModel(("a", "b"), (1.0, 0.0), (2.0, 1.0), (0.5, -1.0), 0.25)
    # z-scores 1 and 0.5: 0.5 - 0.5 + 0.25; the z-score of 1000 is clipped to 5: 2.5 + 0.25
    assert model.predict_log_odds(np.array([[3, 0.5], [1000, 0]], np.float32)).tolist() == pytest.approx([0.25, 2.75])


def test_a_constant_feature_is_not_scaled_and_a_model_is_the_same_after_json() -> None:
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=50), np.full(50, 7.0)], axis=1).astype(np.float32)
    model = LogisticModel.fit(("a", "b"), features, features[:, 0] > 0, np.ones(50), 1.0)
    assert model.scale[1] == 1.0
    assert model_from_dict(model_to_dict(model)).predict_log_odds(features) == pytest.approx(
        model.predict_log_odds(features), abs=1e-4
    )
