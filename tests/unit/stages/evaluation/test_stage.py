"""The step from tables to metrics: by hand with given scores, and with real (tiny) models."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core.context import StageContext
from stages.core.schemas import NEAR_DUPLICATES, PER_QUERY_METRICS, QUERIES, read_table, write_table
from stages.evaluation import stage as evaluation_stage
from stages.evaluation.params import Params
from stages.evaluation.tables import format_metrics_table
from tests.fakes import RecordedProgress
from tests.unit.stages.evaluation.small_evaluation import (
    UseScorers,
    run,
    score_equally,
    score_perfectly,
)


def test_the_metrics_by_hand(inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers) -> None:
    scored = use_scorers(score_perfectly, score_equally)
    out, metrics = run(inputs, context)
    test = metrics["test"]
    # the embedder has each positive at rank 2; one of query 7's two positives is not in its list
    assert {system: test[system]["MRR@10"] for system in test} == {
        "bm25": 1.0,
        "embedder": 0.5,
        "base_reranker": round(1 / 3, 6),
        "reranker": 1.0,
        "fused": 1.0,
    }
    assert test["embedder"]["R@3"] == test["reranker"]["R@3"] == (7 + 1 / 2) / 8
    ideal = 1 + 1 / np.log2(3)
    assert test["reranker"]["nDCG@10"] == pytest.approx((7 + 1 / ideal) / 8, abs=1e-6)
    # with the positives forced in, query 7's list is [text 8, text 7, text 0]
    forced = metrics["positives_forced"]["test"]
    assert forced["embedder"]["R@3"] == 1.0
    assert forced["embedder"]["MAP@100"] == pytest.approx((7 * 1 / 2 + (1 / 2 + 2 / 3) / 2) / 8, abs=1e-6)
    # z of (0.9, 0.8, 0.1) has the positive 0.281 behind, z of (0, 1, 0) 2.121 ahead: it leads from weight 0.117 on
    assert metrics["fusion"] == {"weight": 0.15, "selected_on": "dev"}
    assert metrics["comparisons"]["test"]["reranker"]["MRR@10"] == {
        "difference": 0.5,
        "low": 0.5,
        "high": 0.5,
        "p": 0.002,
    }
    assert metrics["comparisons"]["test"]["base_reranker"]["Hit@1"] == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p": 1.0,
    }
    assert set(metrics["comparisons"]["dev"]) == {"bm25", "base_reranker", "reranker", "fused"}
    assert metrics["candidate_lists"]["test"] == {
        "n_queries": 8,
        "n_groups": 8,
        "mean_documents_per_query": 3.0,
        "recall_at_top_k": 0.9375,
        "n_queries_available": 8,
        "n_near_positives": 0,
    }
    assert metrics["collapse_reason"] is None
    assert metrics["base_has_new_head"] is False
    assert metrics["parameters"] == {
        "top_k": 3,
        "max_queries": 300,
        "bootstrap_samples": 999,
        "seed": 42,
        "dtype": "auto",
    }
    # BM25, the reranker and the fusion gain the same on all eight queries: the interval has no width
    verdict = metrics["verdict"]["test"]
    gain = round((7 * (1 - 1 / np.log2(3)) + (1 - 1 / np.log2(3)) / ideal) / 8, 6)
    assert (verdict["winner"], verdict["published"], verdict["difference"]) == ("bm25", "reranker", gain)
    assert (verdict["queries"], verdict["groups"]) == (8, 8)
    # 3 documents for each of 16 queries, and two forced in: each pair once a model
    assert [len(pairs) for pairs in scored] == [50, 50]
    assert len(set(scored[0])) == 25  # dev and test have the same texts

    values = read_table(out / "per_query.parquet", PER_QUERY_METRICS)
    assert values["split"].unique(maintain_order=True).to_list() == [
        f"{split}{kind}" for split in ("dev", "test") for kind in ("", "_raw", "_forced")
    ]
    assert values.height == 6 * 5 * 8 * 8  # lists, systems, queries, metrics
    one = values.filter(
        (pl.col("query_id") == "test-7") & (pl.col("metric") == "R@3") & (pl.col("system") == "reranker")
    )
    assert one.select("split", "value").rows() == [("test", 0.5), ("test_raw", 0.5), ("test_forced", 1.0)]


def test_a_near_duplicate_of_a_positive_is_no_miss(
    inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers
) -> None:
    # the list of query 3 is [text 4, text 3, text 5]: text 4 answers it as well
    clusters = pl.DataFrame({"doc_id": ["d3", "d4"], "cluster": ["d3", "d3"]})
    write_table(clusters, NEAR_DUPLICATES, inputs["near_duplicates"])
    use_scorers(score_perfectly, score_equally)
    _, metrics = run(inputs, context)
    assert metrics["raw"]["test"]["embedder"]["Hit@1"] == 0
    assert metrics["test"]["embedder"]["Hit@1"] == 1 / 8
    assert metrics["raw"]["test"]["embedder"]["MRR@10"] == 0.5
    assert metrics["test"]["embedder"]["MRR@10"] == (7 * 0.5 + 1) / 8
    assert metrics["candidate_lists"]["test"]["n_near_positives"] == 1


def test_a_base_model_without_a_head_is_not_scored(
    inputs: dict[str, Path], context: StageContext, tiny_model: Path, use_scorers: UseScorers
) -> None:
    scored = use_scorers(score_perfectly)
    out, metrics = run(inputs | {"base_model": tiny_model}, context)
    assert len(scored) == 1
    assert metrics["base_has_new_head"] is True
    systems = ["bm25", "embedder", "reranker", "fused"]
    for means in (
        metrics["dev"],
        metrics["test"],
        metrics["positives_forced"]["dev"],
        metrics["positives_forced"]["test"],
    ):
        assert list(means) == systems
    assert list(metrics["comparisons"]["test"]) == ["bm25", "reranker", "fused"]
    values = read_table(out / "per_query.parquet", PER_QUERY_METRICS)
    assert values["system"].unique(maintain_order=True).to_list() == systems
    labels = [row[0] for row in format_metrics_table(metrics)[1:]]
    assert labels == ["BM25", "embedder", "trained reranker", "fused, weight 0.15"]


def test_without_the_base_model_the_other_systems_are_the_same(
    inputs: dict[str, Path], context: StageContext, tiny_model: Path
) -> None:
    _, with_base = run(inputs, context, "with", device="cpu")
    _, without_base = run(inputs | {"base_model": tiny_model}, context, "without", device="cpu")
    for split in ("dev", "test"):
        assert with_base[split].pop("base_reranker")
        assert with_base["positives_forced"][split].pop("base_reranker")
        assert with_base["raw"][split].pop("base_reranker")
        assert with_base["comparisons"][split].pop("base_reranker")
    with_base["base_has_new_head"] = True
    assert without_base == with_base


def test_too_few_groups_give_no_interval(
    inputs: dict[str, Path], context: StageContext, progress: RecordedProgress, use_scorers: UseScorers
) -> None:
    scored = use_scorers(score_perfectly, score_equally)
    _, metrics = run(inputs, context, max_queries=3)
    assert metrics["candidate_lists"]["dev"]["n_queries"] == 3
    assert metrics["candidate_lists"]["dev"]["n_queries_available"] == 8
    assert metrics["comparisons"]["test"]["reranker"]["Hit@1"] == {
        "difference": 1.0,
        "low": None,
        "high": None,
        "p": None,
    }
    assert "test: 3 of 8 queries are evaluated (max_queries)" in progress.messages
    assert any(message.startswith("test: 3 groups of queries are too few") for message in progress.messages)
    assert len(scored[0]) < 25


def test_lists_that_are_shorter_than_top_k_are_logged(
    inputs: dict[str, Path], context: StageContext, progress: RecordedProgress, use_scorers: UseScorers
) -> None:
    use_scorers(score_perfectly, score_equally)
    run(inputs, context, top_k=5)
    assert any("3 documents, fewer than top_k = 5" in message for message in progress.messages)


@pytest.mark.parametrize("empty", ["dev", "test"])
def test_a_split_may_be_empty(
    empty: str, inputs: dict[str, Path], context: StageContext, progress: RecordedProgress, use_scorers: UseScorers
) -> None:
    use_scorers(score_perfectly, score_equally)
    queries = pl.read_parquet(inputs["queries"]).with_columns(split=pl.col("split").replace({empty: "train"}))
    write_table(queries, QUERIES, inputs["queries"])
    _, metrics = run(inputs, context)
    assert metrics[empty] == metrics["comparisons"][empty] == metrics["positives_forced"][empty] == {}
    assert metrics["candidate_lists"][empty]["n_queries"] == 0
    assert metrics["fusion"] == (
        {"weight": 0.5, "selected_on": None} if empty == "dev" else {"weight": 0.15, "selected_on": "dev"}
    )
    assert any(message.startswith(f"{empty}: no query has a positive") for message in progress.messages)
    assert format_metrics_table(metrics, empty) == []


@pytest.mark.parametrize("n_queries", [0, 1, 15])
def test_test_splits_that_can_tell_nothing_are_said_in_words(
    n_queries: int, inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers
) -> None:
    use_scorers(score_perfectly, score_equally)
    queries = pl.read_parquet(inputs["queries"]).with_columns(split=pl.lit("dev"))
    asked = [f"{split}-{number}" for split in ("dev", "test") for number in range(8)][:n_queries]
    is_test = pl.col("query_id").is_in(asked)
    queries = queries.with_columns(split=pl.when(is_test).then(pl.lit("test")).otherwise("split"), group=pl.lit("g"))
    write_table(queries, QUERIES, inputs["queries"])
    verdict = run(inputs, context)[1]["verdict"]["test"]
    assert (verdict["queries"], verdict["groups"]) == (n_queries, min(n_queries, 1))
    assert {verdict[name] for name in ("winner", "low", "p", "smallest_difference", "queries_for_half")} == {None}
    assert verdict["published"] == "reranker"
    assert ("no test queries" if n_queries == 0 else "too few test queries") in verdict["reasons"][0]


def test_all_splits_may_be_empty(inputs: dict[str, Path], context: StageContext) -> None:
    queries = pl.read_parquet(inputs["queries"]).with_columns(split=pl.lit("train"))
    write_table(queries, QUERIES, inputs["queries"])
    out, metrics = run(inputs, context)
    assert metrics["dev"] == metrics["test"] == {}
    assert read_table(out / "per_query.parquet", PER_QUERY_METRICS).is_empty()


def test_the_summary_names_a_collapse(inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers) -> None:
    use_scorers(score_equally, score_perfectly)
    out = context.scratch_dir / "out"
    out.mkdir()
    summary = evaluation_stage.run(Params(top_k=3), inputs, out, context)
    assert summary["collapse_reason"] == "the reranker gives all documents of a list the same score"
    assert summary["test"]["reranker"]["Hit@1"] == 0


def test_two_runs_with_real_models_give_the_same_bytes(
    inputs: dict[str, Path], context: StageContext, progress: RecordedProgress, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(inputs["base_model"], tmp_path / "elsewhere" / "renamed"))
    one, metrics = run(inputs, context, "one", device="cpu")
    two, _ = run(inputs | {"base_model": moved}, context, "two", device="cpu")
    for name in ("metrics.json", "per_query.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert metrics["test"]["bm25"]["Hit@1"] == 1.0
    assert progress.reports[-1] == (100, 100, "pairs", 0)


def test_a_base_model_with_a_head_is_scored_as_it_is(inputs: dict[str, Path], context: StageContext) -> None:
    _, metrics = run(inputs | {"base_model": inputs["reranker"]}, context, device="cpu")
    assert metrics["test"]["base_reranker"] == metrics["test"]["reranker"]
