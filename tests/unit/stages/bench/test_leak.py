"""The bench by hand: what is hidden, what a rule emits, and what its figures are."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.bench.calibration import compute_quotas
from stages.bench.collections import read_holdout_collection
from stages.bench.leak import (
    RULE_PRESETS,
    RulePreset,
    build_candidate_matrix,
    build_pretrained_model_json,
    compute_leak_metrics,
    compute_median_leak_ratios,
    evaluate_at_hardness,
    select_by_preset,
)
from stages.core.errors import InputError
from stages.core.schemas import FEATURES


def collection(folder: Path, grades: list[tuple[str, str, int]]) -> Path:
    queries = sorted({query for query, _, _ in grades})
    documents = sorted({document for _, document, _ in grades})
    pl.DataFrame({"query_id": queries, "query": queries}).write_parquet(folder / "queries.parquet")
    pl.DataFrame({"doc_id": documents, "text": documents}).write_parquet(folder / "corpus.parquet")
    frame = pl.DataFrame(grades, schema=["query_id", "doc_id", "relevance"], orient="row")
    frame.write_parquet(folder / "qrels.parquet")
    return folder


def test_half_is_hidden_of_questions_with_several_positives(tmp_path: Path) -> None:
    grades = [("one", "a", 1), *(("four", document, 1) for document in "abcd"), ("four", "z", 0)]
    found = read_holdout_collection(collection(tmp_path, grades), seed=0, max_queries=10)
    assert len(found.held_out_positives) == 2
    assert found.held_out_positives["query_id"].unique().to_list() == ["four"]
    assert sorted(found.known_positives["query_id"]) == ["four", "four", "one"]
    assert not set(found.known_positives.select("query_id", "doc_id").iter_rows()) & set(
        found.held_out_positives.iter_rows()
    )
    assert found.nonrelevant.rows() == [("four", "z")]
    assert read_holdout_collection(tmp_path, seed=0, max_queries=10).held_out_positives.equals(found.held_out_positives)
    hidden = {tuple(read_holdout_collection(tmp_path, seed, 10).held_out_positives["doc_id"]) for seed in range(9)}
    assert len(hidden) > 1


def test_or_one_is_left_of_each(tmp_path: Path) -> None:
    grades = [("one", "a", 1), *(("four", document, 1) for document in "abcd")]
    found = read_holdout_collection(collection(tmp_path, grades), 0, 10, "one")
    assert len(found.held_out_positives) == 3
    assert sorted(found.known_positives["query_id"]) == ["four", "one"]


def test_a_grade_of_one_of_three_is_neither_positive_nor_negative(tmp_path: Path) -> None:
    grades = [("q", "a", 3), ("q", "b", 2), ("q", "c", 1), ("q", "d", 0)]
    found = read_holdout_collection(collection(tmp_path, grades), 0, 10)
    assert sorted([*found.known_positives["doc_id"], *found.held_out_positives["doc_id"]]) == ["a", "b"]
    assert found.nonrelevant["doc_id"].to_list() == ["d"]


def test_a_folder_without_tables_is_an_error_that_names_the_missing_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"queries\.parquet"):
        read_holdout_collection(tmp_path, 0, 1)
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "queries.parquet")
    with pytest.raises(InputError, match="no column 'query_id'; it has id"):
        read_holdout_collection(tmp_path, 0, 1)


def test_a_beir_folder_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": d, "title": "", "text": d, "metadata": {}}) + "\n" for d in "abc")
    )
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "1", "text": "which?"}) + "\n")
    (tmp_path / "qrels").mkdir()
    for split, rows in (("train", "1\ta\t1\n1\tb\t1\n"), ("test", "1\tc\t0\n")):
        (tmp_path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    found = read_holdout_collection(tmp_path, 0, 10)
    assert sorted([*found.known_positives["doc_id"], *found.held_out_positives["doc_id"]]) == ["a", "b"]
    assert found.nonrelevant["doc_id"].to_list() == ["c"]
    assert found.queries["query"].to_list() == ["which?"]
    (tmp_path / "qrels" / "train.tsv").write_text("what\n")
    with pytest.raises(InputError, match="no column 'query-id'"):
        read_holdout_collection(tmp_path, 0, 10)


def mined(k: int = 2):
    """Scores 0.9 (hidden), 0.8, 0.5 and 0.7, 0.6 (hidden), 0.1; the positives have 0.8, and 0.6 and 0.8."""
    rows = pl.DataFrame(
        {
            "query_id": ["a", "a", "a", "b", "b", "b"],
            "doc_id": ["h", "x", "y", "x", "h", "z"],
            "rank": [1, 3, 4, 2, 3, 4],
            "score": np.array([0.9, 0.8, 0.5, 0.7, 0.6, 0.1], np.float32),
        }
    )
    judged = pl.DataFrame(
        {
            "query_id": ["a", "b", "b"],
            "doc_id": ["p", "p", "r"],
            "relevance": [1, 1, 1],
            "score": np.array([0.8, 0.6, 0.8], np.float32),
        }
    )
    p = np.array([0.9, 0.0, 0.0, 0.0, 0.5, 0.0], np.float32)
    hidden = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["h", "h"]})
    wrong = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["y", "z"]})
    near = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["x", "z"]})
    return build_candidate_matrix(rows, p, judged, k, hidden, wrong, near)


def test_figures_by_hand() -> None:
    naive = compute_leak_metrics(mined(), select_by_preset(mined(), RULE_PRESETS["naive"]))
    assert naive == {
        "negatives": 4,
        "leak": 0.5,
        "rows": 1.0,
        "hardness": pytest.approx((0.8 + 0.7) / 2),
        "fill": 1.0,
        "near_duplicates": 0.25,  # of h and x for a, x and h for b: one
        "judged_negatives": 0.0,
    }
    # the lowest positives are 0.8 and 0.6: up to 0.76 and 0.57
    perc = compute_leak_metrics(mined(), select_by_preset(mined(), RULE_PRESETS["perc 0.95"]))
    assert perc["leak"] == 0
    assert perc["hardness"] == pytest.approx((0.5 + 0.1) / 2)
    assert perc["fill"] == 0.5
    assert perc["judged_negatives"] == 1.0
    # the best are 0.8 and 0.8
    best = compute_leak_metrics(mined(), select_by_preset(mined(), RULE_PRESETS["perc_max 0.95"]))
    assert best["leak"] == pytest.approx(1 / 3)
    # ranks 3 and 4
    window = select_by_preset(mined(), RulePreset("window", rank_window=(2, 4)))
    assert window.tolist() == [[False, True, True], [False, True, True]]


def test_at_the_hardness_of_a_rule() -> None:
    # with 0.9 given up for 0.5, and 0.6 for 0.1, the true ones have a mean of (0.8 + 0.5 + 0.7 + 0.1) / 4
    found = evaluate_at_hardness(mined(), (0.8 + 0.5 + 0.7 + 0.1) / 4)
    assert found["leak"] == 0
    assert found["fill"] == 1.0


def test_a_prior_of_one_set_has_no_other_to_leave_it_out_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, hidden = rng.normal(size=(200, len(FEATURES))).astype(np.float32), rng.random(200) < 0.2
    one = read_holdout_collection(collection(tmp_path, [("q", "a", 1), ("q", "b", 1)]), 0, 1)
    half, single = [(one, features, hidden)], [(one, features, ~hidden)]
    held = build_pretrained_model_json(half, single, "prep bench negatives x", "m")
    assert held["leave_one_out"] == []
    assert (
        held["all_sets"]["single_positive"]["intercept"] > 0 > held["all_sets"]["multi_positive"]["intercept"]
    )  # most are hidden where one is left
    assert len(build_pretrained_model_json(half * 2, single * 2, "", "")["leave_one_out"]) == 2


def test_medians_exclude_collections_without_a_leak() -> None:
    def of(rule: float, ours: float) -> dict[str, list[dict[str, object]]]:
        return {"equal_hardness": [{"rule": "r", "leak_rule": rule, "leak_learned": ours, "negatives": 88}]}

    # where none leaks of 88, one could have: 0.1 x 88
    assert compute_median_leak_ratios(
        {"a": of(0.1, 0.05), "b": of(0.1, 0.01), "c": of(0.0, 0.0), "d": of(0.1, 0.0)}
    ) == {"r": 8.8}


def test_curated_negatives_leave_less_room() -> None:
    table = pl.DataFrame({"query_id": ["a", "a", "b", "c"]})
    judged = pl.DataFrame({"query_id": ["a", "b", "b", "b", "c"], "relevance": [0, 0, 0, 0, 1]})
    assert compute_quotas(table, judged, 2).tolist() == [1, 0, 2]
