import numpy as np
import polars as pl
import pytest

from stages.embedding.encoder_fit import RankingMeasures
from stages.retrieval import ranking_measures
from stages.retrieval.ranking_measures import measure_candidates, rank_positives, sample_documents, summarise_ranks


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_ranks_count_what_is_better_and_equal_scores_before() -> None:
    scores = np.array([[0.5, 0.9, 0.5, 0.1], [0.0, 0.0, 0.0, 1.0]], np.float32)
    assert rank_positives(scores, ints(0, 0, 0, 1), ints(1, 0, 2, 0)).tolist() == [1, 2, 3, 2]


def test_measures_of_ranks() -> None:
    # query 0 has positives at 2 and 40, query 1 at 20; BM25 finds one of them, at 4
    found = summarise_ranks(ints(2, 40, 20), ints(4, 0, 0), ints(0, 0, 1), np.array(["a", "b"]), 300, 30)
    assert found == RankingMeasures(2, 300, 0.5, 0.25, 30, 0.75, 0.1, 0.125, 0.25, 0.125, None, None)
    assert round(found.lead, 4) == 0.7222  # (0.75 - 0.1) / 0.9
    assert not found.is_below_bm25


def test_bm25_is_compared_by_group() -> None:
    row, groups = np.arange(8), np.array(list("abcdefgh"))
    found = summarise_ranks(np.full(8, 2), np.full(8, 1), row, groups, 100, 10)
    assert (found.mrr_difference, found.mrr_difference_low, found.mrr_difference_high) == (-0.5, -0.5, -0.5)
    assert found.is_below_bm25


def test_candidates_of_train_queries() -> None:
    rows = [
        *[("q1", "a", "dense", 1), ("q1", "b", "dense", 2), ("q1", "c", "dense", 101)],
        *[("q2", "a", "dense", 1), ("q2", "b", "dense", 11), ("q3", "a", "dense", 1)],
        *[("q1", "b", "bm25", 1), ("q1", "c", "window", 2), ("q1", "b", "random", 1)],
    ]
    candidates = pl.LazyFrame(rows, ["query_id", "doc_id", "source", "rank"], orient="row")
    queries = pl.DataFrame({"query_id": ["q1", "q2", "q3", "q4"], "split": ["train", "train", "test", "train"]})
    qrels = pl.DataFrame(
        {"query_id": ["q1", "q1", "q2", "q3", "q4"], "doc_id": list("bcbaa"), "relevance": [1, 2, 1, 1, 0]}
    )
    # of q1 dense has one of two positives in its first hundred, of q2 the one, at rank 11
    assert measure_candidates(candidates, queries, qrels) == {
        "bm25": {"queries": 2, "hit_at_10": 0.5, "mrr_at_10": 0.5, "recall_at_100": 0.25},
        "dense": {"queries": 2, "hit_at_10": 0.5, "mrr_at_10": 0.25, "recall_at_100": 0.75},
    }
    assert measure_candidates(candidates, queries, qrels.clear()) == {}


def test_a_large_corpus_is_sampled_with_the_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    doc_ids = pl.Series([f"d{number:02}" for number in range(50)])
    assert sample_documents(doc_ids, ints(3, 40)).tolist() == list(range(50))
    monkeypatch.setattr(ranking_measures, "MAX_DOCUMENTS", 20)
    sampled = sample_documents(doc_ids, ints(3, 40)).tolist()
    assert {3, 40} <= set(sampled)
    assert sampled == sorted(set(sampled))
    assert 18 <= len(sampled) <= 20
