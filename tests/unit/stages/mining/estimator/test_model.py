"""The learned mask's models: what is hidden, who is judged by whom, and what ships."""

import json

import numpy as np
import polars as pl
import pytest

from stages.core.schemas import FEATURES
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator import model as learned
from stages.mining.estimator.holdout import hold_out_one, hold_out_positives
from stages.mining.estimator.model import (
    MAX_TABLE_MODEL_PROBABILITY,
    MIN_LOGIT_OFFSET,
    BlendedModel,
    LogisticModel,
    PretrainedModel,
    assign_folds,
    fit_logit_offset,
    fit_logit_offsets,
    fit_table_models,
    pu_correct,
    pu_weight,
    read_pretrained_model,
)


def flat(bias: float) -> LogisticModel:
    return LogisticModel(
        TRANSFERABLE_FEATURES,
        (0.0,) * len(TRANSFERABLE_FEATURES),
        (1.0,) * len(TRANSFERABLE_FEATURES),
        (0.0,) * len(TRANSFERABLE_FEATURES),
        bias,
    )


FLAT = PretrainedModel(flat(-2.0), flat(-2.0))

ONE = np.ones(10_000)


def test_log_odds_by_hand() -> None:
    model = LogisticModel(("a", "b"), (1.0, 0.0), (2.0, 1.0), (0.5, -1.0), 0.25)
    # (3 - 1) / 2 = 1 and 0.5: 0.5 - 0.5 + 0.25; far out a feature counts five deviations
    assert model.predict_log_odds(np.array([[3, 0.5], [1000, 0]], np.float32)).tolist() == pytest.approx([0.25, 2.75])


def test_half_is_hidden_by_a_draw_of_the_pair() -> None:
    pairs = [(f"q{q}", f"d{d}") for q in range(50) for d in range(q % 5 + 1)]
    positives = pl.DataFrame(pairs, schema=["query_id", "doc_id"], orient="row")
    found = hold_out_positives(positives, 0, "x")
    for rows in found.partition_by("query_id"):
        assert rows["held_out"].sum() == len(rows) // 2
    some = hold_out_positives(positives.filter(pl.col("query_id") > "q3").reverse(), 0, "x")
    assert some.sort("query_id", "doc_id").equals(found.filter(pl.col("query_id") > "q3").sort("query_id", "doc_id"))
    assert not hold_out_positives(positives, 1, "x").equals(found)


def test_or_all_but_one_are() -> None:
    pairs = [(f"q{q}", f"d{d}") for q in range(50) for d in range(q % 5 + 1)]
    found = hold_out_positives(pl.DataFrame(pairs, schema=["query_id", "doc_id"], orient="row"), 0, "x", "one")
    left = found.filter(~pl.col("held_out"))
    assert sorted(left["query_id"]) == sorted(f"q{q}" for q in range(50))
    assert left["doc_id"].n_unique() > 1


def test_a_question_is_judged_by_the_prior_for_as_many_positives() -> None:
    features = np.zeros((3, len(FEATURES)), np.float32)
    features[:, FEATURES.index("log_n_positives")] = np.log([1, 2, 5])
    found = PretrainedModel(flat(1.0), flat(-1.0))
    assert found.predict_log_odds(features).tolist() == [1.0, -1.0, -1.0]
    assert BlendedModel(found).predict_probability(features, assign_folds(["a", "b", "c"])).tolist() == pytest.approx(
        [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 1 / (1 + np.exp(1))]
    )


def test_a_few_questions_with_many_positives_make_no_table_strange() -> None:
    features = np.zeros((100, len(FEATURES)), np.float32)
    anchors = TRANSFERABLE_FEATURES.index("log_n_positives")
    features[:2, anchors] = 10.0  # they alone lie ten deviations off, of their own model
    assert PretrainedModel(flat(0.0), flat(0.0)).compute_feature_shift(features)[anchors] == pytest.approx(0.2)
    features[:, 0] = -4.0
    assert PretrainedModel(flat(0.0), flat(0.0)).compute_feature_shift(features)[0] == pytest.approx(4.0)


def test_each_question_is_as_strange_as_its_own_model_finds_it() -> None:
    features = np.zeros((4, len(FEATURES)), np.float32)
    features[2:, TRANSFERABLE_FEATURES.index("log_n_positives")] = np.log(2)
    features[:, 0] = [3.0, 3.0, 8.0, 8.0]
    several = LogisticModel(
        TRANSFERABLE_FEATURES,
        (6.0,) * len(TRANSFERABLE_FEATURES),
        (2.0,) * len(TRANSFERABLE_FEATURES),
        (0.0,) * len(TRANSFERABLE_FEATURES),
        0.0,
    )
    assert PretrainedModel(flat(0.0), several).compute_feature_shift(features)[0] == pytest.approx((3 + 3 + 1 + 1) / 4)


def test_what_never_varies_is_not_scaled() -> None:
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=50), np.full(50, 7.0)], axis=1).astype(np.float32)
    model = LogisticModel.fit(("a", "b"), features, features[:, 0] > 0, np.ones(50), 1.0)
    assert model.scale[1] == 1.0
    assert learned.model_from_dict(learned.model_to_dict(model)).predict_log_odds(features) == pytest.approx(
        model.predict_log_odds(features), abs=1e-4
    )


def table(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Candidates of n queries of which those most like a positive are hidden positives."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n * 20, len(FEATURES))).astype(np.float32)
    labels = features[:, FEATURES.index("pos_sim_max")] + rng.normal(size=n * 20) * 0.3 > 1.8
    return features, labels, [f"q{i // 20}" for i in range(n * 20)]


def test_it_learns_what_the_table_shows() -> None:
    features, false, queries = table(400)
    # every other one is hidden, the others are missing: nobody knows that they are positives
    labels = false & (np.cumsum(false) % 2 == 0)
    found = fit_table_models(features, labels, ONE[: len(labels)], queries, FLAT)
    assert found.n_hidden_positives == labels.sum()
    own = BlendedModel(FLAT, found.table_models, 10**9).predict_probability(features, assign_folds(queries))
    missing_ones = false & ~labels
    assert own[missing_ones].mean() > 10 * own[~false].mean()
    assert own[~labels].sum() == pytest.approx(missing_ones.sum(), rel=0.2)


def test_the_odds_of_a_hidden_one_are_the_probability_of_a_missing_one() -> None:
    # 1 hidden, 1 missing, 3 others: odds of 1 : 4, and one in four of those that are not hidden
    p = 1 / (1 + np.exp(-pu_correct(np.log(np.array([0.25, 1e-9, 1.0, 5.0])))))
    assert p.tolist() == pytest.approx([0.25, 1e-9, MAX_TABLE_MODEL_PROBABILITY, MAX_TABLE_MODEL_PROBABILITY])


def test_a_candidate_counts_for_as_much_as_would_be_there_with_one_positive_fewer_known() -> None:
    # densities of 1 and 1: of 0.85 + 1 there 0.85 are missing, and where two are known 1.7 + 1 lie
    p = np.array([0.85 / 1.85, 1.7 / 2.7, 0.0])
    assert pu_weight(p, np.array([1.0, 2.0, 1.0])).tolist() == pytest.approx([1.85 / 2.7, 2.7 / 3.55, 1.0])


def test_the_level_is_where_as_many_are_expected_as_were_found_again() -> None:
    labels, known = np.array([True, False, False, False, False]), np.ones(5)
    # 4 p / (1 + p) = 0.85
    p = 0.2125 / 0.7875
    assert fit_logit_offset(np.zeros(5), labels, known) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    assert fit_logit_offset(np.full(5, 2.0), labels, known) == pytest.approx(np.log(p / (1 - p)) - 2, abs=1e-3)
    # 3 known are left: 4 p / (1 + p / 3) = 2.55
    p = 0.6375 / 0.7875
    assert fit_logit_offset(np.full(5, 3.0), labels, 3 * known) == pytest.approx(np.log(p / (1 - p)) - 3, abs=1e-3)
    # where fewer are expected nothing is added: all may be labelled
    assert fit_logit_offset(np.full(5, -2.0), labels, known) == 0.0
    assert fit_logit_offset(np.full(5, 99.0), labels, known) == MIN_LOGIT_OFFSET
    assert fit_logit_offset(np.zeros(5), ~labels, known) == 0.0


def test_a_prior_that_is_too_cautious_here_is_brought_to_the_table_s_level() -> None:
    random = np.random.default_rng(0)

    def candidates(questions: int, positives: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Features of 20 a question, and which of them are positives: the first ones, so many in the mean."""
        right = np.tile(np.arange(20), questions) < np.repeat(positives + random.random(questions), 20) // 1
        features = np.zeros((len(right), len(FEATURES)), np.float32)
        features[:, FEATURES.index("pos_sim_max")] = np.where(right, 1.5, 0.0) + random.normal(size=len(right))
        return features, right, [f"q{i // 20}" for i in range(len(right))]

    # two are known, of which one is hidden; 0.85 for each known one are missing
    features, _right, names = candidates(1000, 1 + 2 * 0.85)
    hidden = np.tile(np.arange(20), 1000) == 0
    for bias in (0.0, 8.0):
        found = fit_table_models(
            features, hidden, np.where(hidden, 2.0, 1.0), names, PretrainedModel(flat(bias), flat(bias))
        )
        # other questions, where one is known
        features_there, right_there, names_there = candidates(2000, 0.85)
        p = found.predict_probability(features_there, assign_folds(names_there)).astype(np.float64)
        assert p.sum() == pytest.approx(right_there.sum(), rel=0.1)
        likely = p > np.quantile(p, 0.9)
        assert p[likely].mean() == pytest.approx(right_there[likely].mean(), rel=0.2)


def test_a_question_has_no_say_in_its_own_level() -> None:
    fold, labels, known = np.arange(50) % 5, np.arange(50) < 5, np.ones(50)
    odds = np.full(50, 1.0)
    before = fit_logit_offsets(odds, labels, known, fold)
    odds[fold == 3] = 9.0
    after = fit_logit_offsets(odds, labels, known, fold)
    assert after[3] == before[3] == fit_logit_offset(odds[fold != 3], labels[fold != 3], known[fold != 3])
    assert all(after[number] < before[number] for number in (0, 1, 2, 4))


def test_one_positive_is_hidden_at_a_time_each_in_its_turn() -> None:
    pairs = [("one", "a"), ("two", "b"), ("two", "c"), ("three", "d"), ("three", "e"), ("three", "f")]
    positives = pl.DataFrame(pairs, schema=["query_id", "doc_id"], orient="row")
    turns = [hold_out_one(positives, turn) for turn in range(3)]
    assert [sorted(set(turn["query_id"])) for turn in turns] == [["three", "two"], ["three", "two"], ["three"]]
    hidden = [tuple(row) for turn in turns for row in turn.filter("held_out").select("query_id", "doc_id").rows()]
    assert sorted(hidden) == sorted(pairs[1:])
    assert dict(turns[0].select("query_id", "weight").iter_rows()) == {"two": 2.0, "three": 3.0}
    some = positives.filter(pl.col("query_id") == "three").reverse()
    assert hold_out_one(some, 1).filter("held_out").rows() == turns[1].filter("held_out", query_id="three").rows()


def test_a_query_is_judged_by_a_model_that_did_not_see_it() -> None:
    features, labels, queries = table(200)
    fold = assign_folds(queries)
    turned = np.where(fold == 2, ~labels, labels)
    one, other = (
        fit_table_models(features, side, ONE[: len(side)], queries, FLAT).table_models for side in (labels, turned)
    )
    assert one[2] == other[2]
    assert one[0] != other[0]


def test_and_its_probability_is_that_model_s() -> None:
    # the own model of fold k says exp(-1 - k) to everything, the prior (which has no say left) something else
    names = [*(f"q{i}" for i in range(40)), "q3", "q3"]
    own = tuple(flat(-1.0 - number) for number in range(5))
    found = BlendedModel(FLAT, own, 10**9).predict_probability(
        np.zeros((42, len(FEATURES)), np.float32), assign_folds(names)
    )
    expected = np.exp(-1.0 - assign_folds(names))
    assert set(assign_folds(names)) == {0, 1, 2, 3, 4}
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_with_too_little_the_prior_speaks_alone() -> None:
    features, labels, queries = table(5)
    found = fit_table_models(features, labels, ONE[: len(labels)], queries, FLAT)
    assert (found.table_models, found.table_weight) == ((), 0.0)
    assert found.predict_probability(features, assign_folds(queries)) == pytest.approx(1 / (1 + np.exp(2)))


def test_where_all_candidates_are_hidden_positives_there_is_nothing_to_learn_from() -> None:
    features, labels, queries = table(200)
    every = np.ones(len(labels), np.bool_)
    assert fit_table_models(features, every, ONE[: len(every)], queries, FLAT).table_models == ()


def test_an_owner_never_speaks_against_a_candidate() -> None:
    features, labels, queries = table(200)
    # as where every document has one question: what was hidden has no owner any more
    features[:, FEATURES.index("nearest_query_similarity")] = np.where(labels, 0, 5)
    assert all(
        "nearest_query_similarity" not in model.feature_names
        for model in fit_table_models(features, labels, ONE[: len(labels)], queries, FLAT).table_models
    )
    features[:, FEATURES.index("nearest_query_similarity")] = np.where(labels, 5, 0)
    assert all(
        "nearest_query_similarity" in model.feature_names
        for model in fit_table_models(features, labels, ONE[: len(labels)], queries, FLAT).table_models
    )


def test_the_shipped_prior_is_what_it_says() -> None:
    held = json.loads(learned.PRETRAINED_MODEL_PATH.read_text())
    assert held["command"].startswith("prep bench negatives")
    prior = read_pretrained_model()
    for model in (prior.single_positive, prior.multi_positive):
        assert model.feature_names == TRANSFERABLE_FEATURES
        weight = dict(zip(model.feature_names, model.coef, strict=True))
        assert weight["pos_sim_max"] + weight["pos_sim_mean"] > 0
        assert weight["log_rank"] < 0.5
    for without in held["leave_one_out"]:
        other = read_pretrained_model(without["digest"])
        assert other.single_positive != prior.single_positive
        assert other.multi_positive != prior.multi_positive
    assert read_pretrained_model("of a set that it never saw") == prior
