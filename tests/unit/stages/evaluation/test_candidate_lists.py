"""Which questions are evaluated, and which documents stand in their lists."""

from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.schemas import CANDIDATES, QRELS, QRELS_SCORED, QUERIES, write_table
from stages.evaluation.candidate_lists import (
    CandidateLists,
    build_candidate_lists,
    build_top_k_lists,
    drop_near_positives,
    force_positives,
    sample_evaluation_queries,
)

SCORED = ["query_id", "doc_id", "relevance", "score"]
LISTED = ["query_id", "doc_id", "relevance", "embedder"]


def queries(*ids: str, split: str = "test") -> pl.DataFrame:
    return pl.DataFrame({"query_id": ids, "query": ids, "split": [split] * len(ids), "group": ids})


def qrels(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["query_id", "doc_id", "relevance"], orient="row")


def judged(*rows: tuple[str, str, int, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCORED, orient="row")


def lists(*rows: tuple[str, str, int, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=LISTED, orient="row")


def test_only_questions_of_the_split_with_a_positive() -> None:
    table = pl.concat([queries("a", "b", "c"), queries("d", split="dev")])
    found, total = sample_evaluation_queries(table, qrels(("a", "x", 1), ("b", "x", 0), ("d", "x", 1)), "test", 0, 42)
    assert (found["query_id"].to_list(), total) == (["a"], 1)


@settings(max_examples=25)
@given(st.integers(1, 10), st.integers(0, 3), st.integers(0, 11))
def test_questions_outside_the_sample_do_not_shape_it(size: int, seed: int, gone: int) -> None:
    ids = [f"q{number:02}" for number in range(12)]
    positives = qrels(*[(query_id, "x", 1) for query_id in ids])
    sample, total = sample_evaluation_queries(queries(*ids), positives, "test", size, seed)
    chosen = sample["query_id"].to_list()
    assert (len(chosen), total) == (size, 12)
    assert chosen == sorted(chosen)
    left = [query_id for query_id in ids if query_id != ids[gone]]
    again = sample_evaluation_queries(queries(*left), positives, "test", size, seed)[0]["query_id"].to_list()
    assert set(chosen) - {ids[gone]} <= set(again)
    assert (again == chosen) == (ids[gone] not in chosen)


def test_another_seed_draws_others() -> None:
    ids = [f"q{number:02}" for number in range(40)]
    positives = qrels(*[(query_id, "x", 1) for query_id in ids])
    one, two = (
        sample_evaluation_queries(queries(*ids), positives, "test", 10, seed)[0]["query_id"].to_list()
        for seed in (1, 2)
    )
    assert one != two


def test_the_top_of_each_query_with_its_relevance() -> None:
    candidates = pl.DataFrame(
        [("q", "c", 2, 0.8), ("q", "a", 1, 0.9), ("q", "b", 3, 0.7), ("r", "a", 1, 0.1)],
        schema=["query_id", "doc_id", "rank", "score"],
        orient="row",
    )
    found = build_top_k_lists(candidates, qrels(("q", "c", 2), ("q", "b", 1), ("r", "z", 1)), 2)
    assert found.rows() == [("q", "a", 0, 0.9), ("q", "c", 2, 0.8), ("r", "a", 0, 0.1)]


def test_missing_positives_replace_the_last_that_are_none() -> None:
    plain = lists(("q", "a", 0, 0.9), ("q", "b", 0, 0.8), ("q", "p", 1, 0.7), ("r", "a", 1, 0.5))
    found = force_positives(
        plain, judged(("q", "p", 1, 0.7), ("q", "x", 1, 0.2), ("q", "n", 0, 0.1), ("r", "a", 1, 0.5))
    )
    assert found.rows() == [("q", "a", 0, 0.9), ("q", "p", 1, 0.7), ("q", "x", 1, 0.2), ("r", "a", 1, 0.5)]


def test_more_positives_than_room_come_by_relevance_then_score_then_id() -> None:
    plain = lists(("q", "a", 0, 0.9), ("q", "p", 1, 0.8), ("q", "b", 0, 0.7), ("q", "c", 0, 0.6))
    wanted = judged(("q", "p", 1, 0.8), ("q", "w", 1, 0.1), ("q", "y", 1, 0.3), ("q", "x", 1, 0.3), ("q", "z", 3, 0.0))
    found = force_positives(plain, wanted)
    assert found["doc_id"].to_list() == ["p", "x", "y", "z"]


def test_complete_lists_stay_as_they_are() -> None:
    plain = lists(("q", "p", 1, 0.9), ("q", "a", 0, 0.8))
    assert force_positives(plain, judged(("q", "p", 1, 0.9), ("other", "x", 1, 0.1))).equals(plain)


def test_from_tables_to_lists(tmp_path: Path) -> None:
    table = pl.concat([queries("d1", split="dev"), queries("t1", "t2"), queries("w1", split="train")])
    relevant = qrels(("d1", "a", 1), ("t1", "a", 1), ("t1", "z", 1), ("w1", "a", 1))
    candidates = pl.DataFrame(
        [
            (query_id, doc_id, source, rank, 1.0 / rank)
            for query_id in ("d1", "t1", "t2", "w1")
            for source, order in (("dense", "abc"), ("bm25", "zyx"))
            for rank, doc_id in enumerate(order, 1)
        ],
        schema=CANDIDATES.names,
        orient="row",
    )
    write_table(table, QUERIES, tmp_path / "queries")
    write_table(relevant, QRELS, tmp_path / "qrels")
    write_table(candidates, CANDIDATES, tmp_path / "candidates")
    write_table(relevant.with_columns(score=pl.lit(0.25)), QRELS_SCORED, tmp_path / "qrels_scored")
    inputs = {name: tmp_path / name for name in ("queries", "qrels", "candidates", "qrels_scored")}

    fixed = build_candidate_lists(inputs, ["dev", "test"], top_k=2, max_queries=0, seed=0)
    assert fixed.queries.select("split", "query_id").rows() == [("dev", "d1"), ("test", "t1")]
    assert fixed.qrels["query_id"].to_list() == ["d1", "t1", "t1"]
    assert fixed.lists.rows() == [
        ("dev", "d1", "a", 1, 1.0),
        ("dev", "d1", "b", 0, 0.5),
        ("test", "t1", "a", 1, 1.0),
        ("test", "t1", "b", 0, 0.5),
        ("dev_forced", "d1", "a", 1, 1.0),
        ("dev_forced", "d1", "b", 0, 0.5),
        ("test_forced", "t1", "a", 1, 1.0),
        ("test_forced", "t1", "z", 1, 0.25),
    ]
    assert fixed.select_unique_pairs().rows() == [("d1", "a"), ("d1", "b"), ("t1", "a"), ("t1", "b"), ("t1", "z")]
    assert fixed.n_queries_available == {"dev": 1, "test": 1}

    del inputs["qrels_scored"]
    plain = build_candidate_lists(inputs, ["test"], top_k=2, max_queries=0, seed=0, include_forced=False)
    assert plain.lists.rows() == [("test", "t1", "a", 1, 1.0), ("test", "t1", "b", 0, 0.5)]


def test_questions_that_were_trained_on_are_left_out_of_everything() -> None:
    fixed = CandidateLists(
        queries=queries("a", "b"),
        qrels=qrels(("a", "x", 1), ("b", "y", 1)),
        lists=lists(("a", "x", 1, 0.5), ("b", "y", 1, 0.5)),
        n_queries_available={"test": 2},
    )
    left = fixed.exclude_queries(pl.Series(["a", "not here"]))
    assert [frame["query_id"].to_list() for frame in (left.queries, left.qrels, left.lists)] == [["b"]] * 3
    assert left.n_queries_available == {"test": 2}


def test_near_duplicates_of_a_positive_are_taken_out_of_the_lists() -> None:
    lists = pl.DataFrame(
        {"query_id": ["q", "q", "q", "r"], "doc_id": ["copy", "p", "other", "copy"], "relevance": [0, 1, 0, 0]}
    )
    qrels = pl.DataFrame({"query_id": ["q", "r"], "doc_id": ["p", "elsewhere"], "relevance": [1, 1]})
    clusters = pl.DataFrame({"doc_id": ["copy", "p"], "cluster": ["copy", "copy"]})
    kept = drop_near_positives(lists, qrels, clusters)
    assert kept.select("query_id", "doc_id").rows() == [("q", "p"), ("q", "other"), ("r", "copy")]


def test_a_positive_whose_copy_is_a_positive_too_stays() -> None:
    lists = pl.DataFrame({"query_id": ["q", "q"], "doc_id": ["a", "b"], "relevance": [1, 2]})
    clusters = pl.DataFrame({"doc_id": ["a", "b"], "cluster": ["a", "a"]})
    assert drop_near_positives(lists, lists, clusters).equals(lists)
