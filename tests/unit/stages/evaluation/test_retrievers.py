"""BM25, the embedder and their fusion, in the whole corpus and on fixed lists, by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core.context import StageContext
from stages.core.schemas import CANDIDATES, QRELS, QUERIES, read_table, write_table
from stages.evaluation import retrievers
from stages.evaluation.params import RetrieverParams
from tests.fakes import RecordedProgress


@pytest.fixture(autouse=True)
def dense_scores(monkeypatch: pytest.MonkeyPatch, tables: dict[str, Path]) -> None:
    """The embedder's scores are those of the candidates; 0 for a pair that is none."""

    class Dense:
        def __init__(self, queries: pl.DataFrame, *_: Any) -> None:
            self.query_ids = queries["query_id"]
            found = read_table(tables["candidates"], CANDIDATES, ["query_id", "doc_id", "score"])
            self.scores = {(query, doc): score for query, doc, score in found.iter_rows()}

        def score_pairs(self, queries: Any, documents: Any) -> Any:
            pairs = zip(self.query_ids.gather(queries), documents.tolist(), strict=True)
            return np.array([self.scores.get((query, f"d{n}"), 0.0) for query, n in pairs], np.float32)

    monkeypatch.setattr(retrievers, "DenseRetriever", Dense)
    monkeypatch.setattr(retrievers, "VectorLookup", lambda *_: None)


@pytest.fixture
def with_train(tables: dict[str, Path]) -> dict[str, Path]:
    """One more query, of train, whose positive "text 5" only BM25 finds; the embedder finds text 1, 2 and 3."""
    for name, schema, rows in (
        ("queries", QUERIES, [("train-5", "about 5", "train", "gt")]),
        ("qrels", QRELS, [("train-5", "d5", 1)]),
        ("candidates", CANDIDATES, [("train-5", f"d{n}", "dense", n, s) for n, s in ((1, 0.9), (2, 0.8), (3, 0.1))]),
    ):
        more = pl.DataFrame(rows, schema=schema.names, orient="row")
        write_table(pl.concat([read_table(tables[name], schema), more], how="vertical_relaxed"), schema, tables[name])
    return tables


def run(tables: dict[str, Path], context: StageContext, **params: Any) -> dict[str, Any]:
    assert context.scratch_dir
    settings = RetrieverParams(**{"top_k": 3, "bootstrap_samples": 999} | params)
    retrievers.run(settings, tables, context.scratch_dir, context)
    found: dict[str, Any] = json.loads((context.scratch_dir / "retrievers.json").read_text())
    return found


def pick(view: dict[str, Any], split: str, metric: str) -> dict[str, float]:
    return {system: values[metric] for system, values in view[split].items()}


def test_the_figures_by_hand(with_train: dict[str, Path], context: StageContext) -> None:
    found = run(with_train, context)
    assert found["depth"] == 3
    assert found["queries"]["train"] == {"n_queries": 1, "n_groups": 1, "n_queries_available": 1}
    # "about 3" shares a word with "text 3" alone; the embedder has each positive of test at rank 2; z of (0.9, 0.8,
    # 0.1) has it 0.281 behind and z of (0, 1, 0) 2.121 ahead, so the fusion leads with it from the weight 0.117 on
    for view in (found["corpus"], found["lists"]):
        assert view["fusion"] == {"weight": 0.15, "selected_on": "dev"}
        assert pick(view, "test", "MRR@10") == {"bm25": 1.0, "embedder": 0.5, "hybrid": 1.0}
        assert view["comparisons"]["test"]["bm25"]["MRR@10"] == {"difference": 0.5, "low": 0.5, "high": 0.5, "p": 0.002}
    # BM25 finds one document of the corpus and not query 7's other positive: nDCG 1 / (1 + 1 / log2(3)) there
    ndcg = (7 + 1 / (1 + 1 / np.log2(3))) / 8
    assert found["corpus"]["test"]["bm25"]["nDCG@10"] == pytest.approx(ndcg, abs=1e-6)
    # z of (0.9, 0.8, 0.1, 0) is (1.116, 0.868, -0.868, -1.116), that of (0, 0, 0, 1) three times -0.577 and 1.732: with
    # the weight 0.15 text 5 is third
    assert pick(found["corpus"], "train", "MRR@10") == {"bm25": 1.0, "embedder": 0.0, "hybrid": round(1 / 3, 6)}
    assert pick(found["corpus"], "train", "R@3") == {"bm25": 1.0, "embedder": 0.0, "hybrid": 1.0}
    assert pick(found["lists"], "train", "MRR@10") == {"bm25": 0.0, "embedder": 0.0, "hybrid": 0.0}
    assert found["corpus"]["comparisons"]["train"]["bm25"]["MRR@10"]["low"] is None


def test_the_result_and_its_limits_in_words() -> None:
    scores = {"bm25": {"nDCG@10": 0.505}, "embedder": {"nDCG@10": 0.704}, "hybrid": {"nDCG@10": 0.7284}}
    comparison = {"difference": 0.0244, "low": -0.018, "high": 0.058, "p": 0.265}
    found: dict[str, Any] = {
        "corpus": {
            "test": scores,
            "comparisons": {"test": {"hybrid": {"nDCG@10": comparison}}},
            "fusion": {"weight": 0.25, "selected_on": "dev"},
        },
        "queries": {"train": {"n_queries": 300, "n_queries_available": 582}},
    }
    assert retrievers.describe_retrievers(found) == (
        "The retrievers alone, over the whole corpus, nDCG@10 on test: BM25 0.505, embedder 0.704, BM25 + embedder "
        "0.728 (0.25 of BM25; +0.024 [-0.018, +0.058])."
    )
    comparison |= {"low": None, "high": None, "p": None}  # type: ignore[dict-item]
    assert "(0.25 of BM25; +0.024, too few groups for an interval)." in retrievers.describe_retrievers(found)
    first, last = retrievers.list_retriever_caveats(found)
    assert first == "train: 300 of 582 queries are measured (max_queries)"
    assert "too good" in last


def test_splits_may_be_empty(tables: dict[str, Path], context: StageContext, progress: RecordedProgress) -> None:
    queries = read_table(tables["queries"], QUERIES)
    write_table(queries.with_columns(split=pl.lit("train")), QUERIES, tables["queries"])
    found = run(tables, context)
    assert found["corpus"]["dev"] == found["corpus"]["test"] == found["lists"]["comparisons"]["test"] == {}
    assert found["corpus"]["fusion"] == {"weight": 0.5, "selected_on": None}
    assert retrievers.describe_retrievers(found) == "There are no test queries to measure the retrievers on."
    assert "no dev queries" in retrievers.list_retriever_caveats(found)[-1]
    assert progress.reports[-1][:3] == (10, 10, "documents")
    write_table(queries.clear(), QUERIES, tables["queries"])
    assert run(tables, context)["corpus"]["train"] == {}
