"""The work of each step, by hand."""

from dataclasses import replace
from typing import Any

import pytest

from stages.planning.step_work import (
    ACTIVATION_BYTES,
    BACKWARD_COST,
    PRODUCTS_PER_CANDIDATE,
    UNCERTAIN_SHARE,
    count_work,
)
from stages.planning.workload import NewTexts, Workload
from tests.unit.stages.planning.conftest import change

Settings = dict[str, Any]


def test_encode_counts_the_tokens_of_new_texts_up_to_the_limit(workload: Workload, settings: Settings) -> None:
    found = count_work("encode", workload, settings)
    # 20 queries of (10 + 30) / 2 tokens, and 10 documents of (40 + 256) / 2, cut at the model's own limit
    assert (found.n_units, found.unit, found.unit_cost) == (400 + 1_480, "tokens", 1)
    assert found.disk_bytes == 30 * 4 * 8
    shorter = count_work("encode", workload, change(settings, "encode", max_length=20))
    assert shorter.n_units == 20 * 15 + 10 * 20
    assert count_work("encode", replace(workload, new_texts=[NewTexts(0, 0, True)]), settings).n_units == 0


def test_search_compares_every_query_with_every_document(workload: Workload, settings: Settings) -> None:
    found = count_work("search", workload, change(settings, "search", top_k=16))
    assert (found.n_units, found.unit) == (100, "searches")
    assert found.unit_cost == 50 * 8 + 16 * PRODUCTS_PER_CANDIDATE
    # of 200 candidates that are asked for there are 50
    assert count_work("search", workload, settings).unit_cost == 50 * 8 + 50 * PRODUCTS_PER_CANDIDATE


def test_an_incremental_search_counts_only_new_work(workload: Workload, settings: Settings) -> None:
    continued = replace(workload, new_texts=[NewTexts(20, 10, has_search=True)])
    # 20 new queries in full, and 80 queries in 10 of 50 documents
    assert count_work("search", continued, settings).n_units == 20 + 80 * 10 / 50
    half_new = replace(workload, new_texts=[NewTexts(20, 26, has_search=True)])
    assert count_work("search", half_new, settings).n_units == 100


def test_bm25_is_a_search_and_random_documents_are_none(workload: Workload, settings: Settings) -> None:
    several = change(settings, "search", sources=("dense", "bm25:10-40", "random:20"))
    found = count_work("search", workload, several)
    assert found.n_units == 200
    assert found.unit_cost == 50 * 8 + (50 + 30 + 20) * PRODUCTS_PER_CANDIDATE


def test_the_time_of_an_index_is_unknown(workload: Workload, settings: Settings) -> None:
    assert count_work("search", workload, change(settings, "search", faiss_index="IVF16,Flat")).unit_cost is None
    assert count_work("search", workload, change(settings, "search", faiss_index="exact")).unit_cost


@pytest.mark.parametrize(("step", "n_queries"), [("features", 100), ("mask", 100), ("sample", 60)])
def test_steps_after_the_search_count_candidates(
    step: str, n_queries: int, workload: Workload, settings: Settings
) -> None:
    found = count_work(step, workload, change(settings, "search", top_k=30))
    assert (found.n_units, found.unit, found.unit_cost) == (n_queries, "queries", 30)


def test_features_hold_a_limited_number_of_candidates(workload: Workload, settings: Settings) -> None:
    large = replace(workload, n_queries=1_000_000)
    assert count_work("features", large, settings).memory_bytes == 500 * 200_000
    assert count_work("mask", large, settings).memory_bytes == 180 * 1_000_000 * 50


def test_verify_scores_uncertain_candidates_and_positives(workload: Workload, settings: Settings) -> None:
    assert count_work("verify", workload, settings).n_units == 0
    asked = change(settings, "verify", verifier="t", verifier_max_length=200)
    found = count_work("verify", workload, asked)
    assert found.n_units == round(UNCERTAIN_SHARE * 100 * 50) + 60
    # pairs of 100 and 200 (300, cut) tokens, by a model that is twice as large as the base
    assert found.unit_cost == 2 * 150
    assert count_work("verify", workload, change(asked, "verify", verifier_budget=40)).n_units == 40 + 60


def test_a_verifier_that_is_trained_on_the_table_costs_its_training(workload: Workload, settings: Settings) -> None:
    asked = change(settings, "verify", verifier="self", verifier_max_length=200, verifier_budget=40)
    found = count_work("verify", replace(workload, verifier_size=workload.base_size), asked)
    # 2 folds x 60 queries x 8 pairs x 2 epochs are trained on; 100 pairs are scored
    assert found.n_units * (found.unit_cost or 0) == pytest.approx(150 * (100 + BACKWARD_COST * 1_920))


def test_the_time_of_an_llm_judge_is_unknown(workload: Workload, settings: Settings) -> None:
    found = count_work("verify", workload, change(settings, "verify", llm_judge="http://x", llm_judge_model="m"))
    assert (found.n_units, found.unit_cost) == (1_000, None)


def test_training_is_steps_and_an_evaluation_an_epoch(workload: Workload, settings: Settings) -> None:
    short = change(settings, "train", epochs=2, num_negatives=3, batch_size=8, max_length=200, max_queries=50)
    short = change(short, "train", max_dev_queries=10, dev_top_k=5)
    found = count_work("train", workload, short)
    # 50 groups are 7 steps; one epoch of distillation comes first, since the head is new
    assert (found.n_units, found.unit) == (7 * 3, "steps")
    n_tokens = 8 * 4 * 150
    assert found.unit_cost == pytest.approx(BACKWARD_COST * n_tokens + 10 * 5 * 150 / 7)
    assert found.memory_bytes == 12 * 2_000 + ACTIVATION_BYTES * 8 * 2 * n_tokens
    assert found.disk_bytes == 28 * 2_000
    assert count_work("train", replace(workload, has_new_head=False), short).n_units == 7 * 2


def test_a_query_gives_a_group_for_each_positive_it_has(workload: Workload, settings: Settings) -> None:
    # 60 queries of 1.5 positives each: 60 groups if one is drawn, 90 if up to three are
    assert count_work("train", workload, change(settings, "train", batch_size=1)).n_units == 60 * 3
    assert count_work("train", workload, change(settings, "train", batch_size=1, num_positives=3)).n_units == 90 * 3


def test_evaluation_scores_both_splits_with_every_reranker(workload: Workload, settings: Settings) -> None:
    short = change(settings, "evaluate", top_k=5, max_queries=12)
    found = count_work("evaluate", workload, short)
    # 12 + 12 queries x 5 documents; pairs of 100 and 256 tokens, cut by [train]
    assert (found.n_units, found.unit, found.unit_cost) == (120, "pairs", 178)
    # a base model that can rank is evaluated too
    assert count_work("evaluate", replace(workload, has_new_head=False), short).n_units == 240


def test_a_table_without_queries_to_train_on_has_nothing_to_do(workload: Workload, settings: Settings) -> None:
    empty = replace(workload, n_queries_by_split={})
    assert count_work("train", empty, settings).n_units == 0
    assert count_work("evaluate", empty, settings).n_units == 0
