"""The pretrained model and the table models together: who predicts, and what is learned from a table."""

import numpy as np
import pytest

from stages.core.schemas import FEATURES
from stages.mining.estimator.blended_model import BlendedModel, fit_table_models
from stages.mining.estimator.folds import assign_folds
from stages.mining.estimator.pretrained_model import PretrainedModel
from tests.unit.stages.mining.estimator.models import CONSTANT, make_model

POS_SIM_MAX, N_POSITIVES = FEATURES.index("pos_sim_max"), FEATURES.index("log_n_positives")
NEAREST_QUERY = FEATURES.index("nearest_query_similarity")


def draw_candidates(n_queries: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of 20 candidates a query; those that are most similar to a positive are positives."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n_queries * 20, len(FEATURES))).astype(np.float32)
    is_positive = features[:, POS_SIM_MAX] + rng.normal(size=n_queries * 20) * 0.3 > 1.8
    return features, is_positive, [f"q{i // 20}" for i in range(n_queries * 20)]


def fit(features: np.ndarray, labels: np.ndarray, queries: list[str]) -> BlendedModel:
    return fit_table_models(features, labels, np.ones(len(labels)), queries, CONSTANT)


def test_without_table_models_the_pretrained_model_predicts() -> None:
    features = np.zeros((3, len(FEATURES)), np.float32)
    features[:, N_POSITIVES] = np.log([1, 2, 5])
    model = BlendedModel(PretrainedModel(make_model(1.0), make_model(-1.0)))
    assert model.predict_probability(features, assign_folds(["a", "b", "c"])).tolist() == pytest.approx(
        [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 1 / (1 + np.exp(1))]
    )


def test_table_models_find_unlabelled_positives_and_their_number() -> None:
    features, is_positive, queries = draw_candidates(400)
    # every second positive is held out, the others are unlabelled
    labels = is_positive & (np.cumsum(is_positive) % 2 == 0)
    model = fit(features, labels, queries)
    assert model.n_held_out_positives == labels.sum()
    p = BlendedModel(CONSTANT, model.table_models, 10**9).predict_probability(features, assign_folds(queries))
    is_unlabelled = is_positive & ~labels
    assert p[is_unlabelled].mean() > 10 * p[~is_positive].mean()
    assert p[~labels].sum() == pytest.approx(is_unlabelled.sum(), rel=0.2)


def test_offsets_correct_a_pretrained_model_that_expects_too_many() -> None:
    rng = np.random.default_rng(0)

    def draw(n_queries: int, n_positives: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Features of 20 candidates a query, of which the first ones are positives: so many on average."""
        is_positive = np.tile(np.arange(20), n_queries) < np.repeat(n_positives + rng.random(n_queries), 20) // 1
        features = np.zeros((len(is_positive), len(FEATURES)), np.float32)
        features[:, POS_SIM_MAX] = np.where(is_positive, 1.5, 0.0) + rng.normal(size=len(is_positive))
        return features, is_positive, [f"q{i // 20}" for i in range(len(is_positive))]

    # two positives are known, one of them is held out, and 0.85 are unlabelled for each known one
    features, _, queries = draw(1000, 1 + 2 * 0.85)
    labels = np.tile(np.arange(20), 1000) == 0
    for intercept in (0.0, 8.0):
        pretrained = PretrainedModel(make_model(intercept), make_model(intercept))
        model = fit_table_models(features, labels, np.where(labels, 2.0, 1.0), queries, pretrained)
        # other queries, with one known positive
        other_features, is_positive, other_queries = draw(2000, 0.85)
        p = model.predict_probability(other_features, assign_folds(other_queries)).astype(np.float64)
        assert p.sum() == pytest.approx(is_positive.sum(), rel=0.1)
        is_likely = p > np.quantile(p, 0.9)
        assert p[is_likely].mean() == pytest.approx(is_positive[is_likely].mean(), rel=0.2)


def test_a_fold_is_predicted_by_the_model_that_was_not_fitted_on_it() -> None:
    features, labels, queries = draw_candidates(200)
    fold = assign_folds(queries)
    changed = np.where(fold == 2, ~labels, labels)
    before, after = (fit(features, some, queries).table_models for some in (labels, changed))
    assert before[2] == after[2]
    assert before[0] != after[0]


def test_each_fold_has_its_own_probability() -> None:
    # the table model of fold k has log odds of -1 - k, and the weight of the pretrained model is 0
    queries = [*(f"q{i}" for i in range(40)), "q3", "q3"]
    table_models = tuple(make_model(-1.0 - number) for number in range(5))
    p = BlendedModel(CONSTANT, table_models, 10**9).predict_probability(
        np.zeros((42, len(FEATURES)), np.float32), assign_folds(queries)
    )
    assert set(assign_folds(queries)) == {0, 1, 2, 3, 4}
    assert p.tolist() == pytest.approx(np.exp(-1.0 - assign_folds(queries)).tolist(), rel=1e-3)


def test_with_too_few_held_out_positives_the_pretrained_model_predicts_alone() -> None:
    features, labels, queries = draw_candidates(5)
    model = fit(features, labels, queries)
    assert (model.table_models, model.table_weight) == ((), 0.0)
    assert model.predict_probability(features, assign_folds(queries)) == pytest.approx(1 / (1 + np.exp(2)))


def test_with_one_label_only_nothing_is_fitted() -> None:
    features, labels, queries = draw_candidates(200)
    assert fit(features, np.ones(len(labels), np.bool_), queries).table_models == ()


def test_the_similarity_to_another_query_never_lowers_the_probability() -> None:
    features, labels, queries = draw_candidates(200)
    # as if every document were a positive of one query only, which a held-out document has lost
    features[:, NEAREST_QUERY] = np.where(labels, 0, 5)
    for model in fit(features, labels, queries).table_models:
        assert "nearest_query_similarity" not in model.feature_names
    features[:, NEAREST_QUERY] = np.where(labels, 5, 0)
    for model in fit(features, labels, queries).table_models:
        assert "nearest_query_similarity" in model.feature_names
