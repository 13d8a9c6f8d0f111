"""The dev metrics by hand, with given scores in place of a model."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core.schemas import CORPUS, write_table
from stages.evaluation.candidate_lists import CandidateLists
from stages.training import dev_evaluation
from stages.training.dev_evaluation import build_dev_evaluator


def test_a_positive_that_ties_with_a_negative_ranks_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = pl.DataFrame(
        {
            "list": "dev",
            "query_id": ["a", "a", "a", "b", "b"],
            "doc_id": ["d1", "d2", "d3", "d1", "d2"],
            "relevance": [1, 0, 0, 0, 1],
            "embedder": [0.9, 0.8, 0.7, 0.9, 0.8],
        }
    )
    queries = pl.DataFrame({"split": "dev", "query_id": ["a", "b"], "query": ["qa", "qb"], "group": ["a", "b"]})
    qrels = lists.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "relevance")
    write_table(
        pl.DataFrame({"doc_id": ["d1", "d2", "d3"], "text": ["t1", "t2", "t3"]}), CORPUS, tmp_path / "c.parquet"
    )
    scores = {("qa", "t1"): 1.0, ("qa", "t2"): 1.0, ("qa", "t3"): 0.0, ("qb", "t1"): 0.0, ("qb", "t2"): 3.0}
    monkeypatch.setattr(
        dev_evaluation,
        "score_pairs",
        lambda model, pairs, dtype: np.array([scores[pair] for pair in pairs], np.float32),
    )
    candidate_lists = CandidateLists(queries, qrels, lists, {"dev": 2})
    evaluator = build_dev_evaluator(candidate_lists, tmp_path / "c.parquet", "float32")
    # a: the positive ties with a negative, so it is second; b: first
    metrics = evaluator.evaluate(None)  # type: ignore[arg-type]
    assert metrics["MRR@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["nDCG@10"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert metrics["max_score_range"] == 3.0
