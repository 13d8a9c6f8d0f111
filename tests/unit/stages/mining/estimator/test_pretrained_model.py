"""The shipped model: which of its parts predicts, how it measures a shift, and what its file holds."""

import json

import numpy as np
import pytest

from stages.core.schemas import FEATURES
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.pretrained_model import PRETRAINED_MODEL_PATH, PretrainedModel, read_pretrained_model
from tests.unit.stages.mining.estimator.models import make_model

N_POSITIVES = FEATURES.index("log_n_positives")


def test_the_number_of_positives_chooses_the_model() -> None:
    features = np.zeros((3, len(FEATURES)), np.float32)
    features[:, N_POSITIVES] = np.log([1, 2, 5])
    assert PretrainedModel(make_model(1.0), make_model(-1.0)).predict_log_odds(features).tolist() == [1.0, -1.0, -1.0]


def test_a_few_rows_shift_a_feature_in_proportion() -> None:
    features = np.zeros((100, len(FEATURES)), np.float32)
    features[:2, N_POSITIVES] = 10.0  # 2 of 100 rows, 10 standard deviations from their model's mean
    model = PretrainedModel(make_model(0.0), make_model(0.0))
    assert model.compute_feature_shift(features)[N_POSITIVES] == pytest.approx(0.2)
    features[:, 0] = -4.0
    assert model.compute_feature_shift(features)[0] == pytest.approx(4.0)


def test_the_shift_of_a_row_is_measured_by_its_own_model() -> None:
    features = np.zeros((4, len(FEATURES)), np.float32)
    features[2:, N_POSITIVES] = np.log(2)
    features[:, 0] = [3.0, 3.0, 8.0, 8.0]
    model = PretrainedModel(make_model(0.0), make_model(0.0, mean=6.0, scale=2.0))
    assert model.compute_feature_shift(features)[0] == pytest.approx((3 + 3 + 1 + 1) / 4)


def test_the_shipped_file_holds_a_model_of_all_sets_and_one_without_each() -> None:
    content = json.loads(PRETRAINED_MODEL_PATH.read_text())
    assert content["command"].startswith("prep bench negatives")
    shipped = read_pretrained_model()
    for model in (shipped.single_positive, shipped.multi_positive):
        assert model.feature_names == TRANSFERABLE_FEATURES
        coef = dict(zip(model.feature_names, model.coef, strict=True))
        assert coef["pos_sim_max"] + coef["pos_sim_mean"] > 0
        assert coef["log_rank"] < 0.5
    assert content["leave_one_out"]
    for models in content["leave_one_out"]:
        without = read_pretrained_model(models["digest"])
        assert without.single_positive != shipped.single_positive
        assert without.multi_positive != shipped.multi_positive
    assert read_pretrained_model("the digest of another set") == shipped
