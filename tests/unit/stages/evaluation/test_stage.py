"""The stage from tables to figures: by hand with given scores, and once with a real (tiny) model."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from stages.core.context import StageContext
from stages.core.schemas import (
    CANDIDATES,
    CORPUS,
    PER_QUERY_METRICS,
    QRELS,
    QRELS_SCORED,
    QUERIES,
    read_table,
    write_table,
)
from stages.evaluation import regression_gate
from stages.evaluation import stage as evaluation_stage
from stages.evaluation.stage import Params, detect_score_collapse, format_metrics_table

Pairs = list[tuple[str, str]]
Fake = Callable[[str, str], float]
Use = Callable[..., list[Pairs]]
QUERIES_A_SPLIT = 8


class Log:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[tuple[int, int | None]] = []

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        self.done.append((done, total))

    def log(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def tools(tmp_path: Path, log: Log) -> StageContext:
    return StageContext(log, tmp_path, tmp_path, tmp_path)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Eight questions a split, each about one document; the embedder puts another one first, by a little.

    Question dev-3 asks for document "text 3". Its list is [text 4, text 3, text 5]. dev-7 and test-7 have another
    positive, "text 0", which is not in their lists.
    """
    ids = [f"{split}-{number}" for split in ("dev", "test") for number in range(QUERIES_A_SPLIT)]
    number_of = {query_id: int(query_id[-1]) for query_id in ids}
    queries = pl.DataFrame(
        {
            "query_id": ids,
            "query": [f"about {number_of[query_id]}" for query_id in ids],
            "split": [query_id.split("-")[0] for query_id in ids],
            "group": [f"g{query_id}" for query_id in ids],
        }
    )
    corpus = pl.DataFrame({"doc_id": [f"d{n}" for n in range(10)], "text": [f"text {n}" for n in range(10)]})
    relevant = [(query_id, f"d{n}", 1) for query_id, n in number_of.items()]
    relevant += [("dev-7", "d0", 1), ("test-7", "d0", 1)]
    qrels = pl.DataFrame(relevant, schema=["query_id", "doc_id", "relevance"], orient="row")
    qrels = qrels.sort("query_id", "doc_id")
    candidates = pl.DataFrame(
        [
            (query_id, f"d{(n + step) % 10}", "dense", rank, score)
            for query_id, n in number_of.items()
            for rank, (step, score) in enumerate([(1, 0.9), (0, 0.8), (2, 0.1)], 1)
        ],
        schema=CANDIDATES.names,
        orient="row",
    )
    tables = {
        "queries": (queries, QUERIES),
        "corpus": (corpus, CORPUS),
        "qrels": (qrels, QRELS),
        "candidates": (candidates, CANDIDATES),
        "qrels_scored": (qrels.with_columns(score=pl.lit(0.05)), QRELS_SCORED),
    }
    for name, (frame, schema) in tables.items():
        write_table(frame, schema, tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in tables}


@pytest.fixture
def reranker(tiny_model: Path, tmp_path: Path, inputs: dict[str, Path]) -> dict[str, Path]:
    """`inputs` with a real reranker: the tiny encoder and a head that was never trained."""
    from stages.reranking.cross_encoder import load_reranker, save_reranker

    save_reranker(load_reranker(tiny_model, "cpu", seed=1), tmp_path / "reranker")
    (tmp_path / "training.json").write_text(json.dumps({"base": "tiny", "seed": 0}))
    return inputs | {
        "reranker": tmp_path / "reranker",
        "training": tmp_path / "training.json",
        "base_model": tiny_model,
    }


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Put plain functions of (query, document) in the place of cross-encoders; gives the list of what they scored."""

    def put(*fakes: Fake) -> list[Pairs]:
        asked: list[Pairs] = []

        def scores(texts: Pairs, folders: Iterable[Path], **_: Any) -> Iterator[NDArray[np.float32]]:
            for _folder, fake in zip(folders, fakes, strict=True):
                asked.append(list(texts))
                yield np.array([fake(*pair) for pair in texts], dtype=np.float32)

        for module in (evaluation_stage, regression_gate):
            monkeypatch.setattr(module, "score_with_cross_encoders", scores)
        return asked

    return put


def perfect(query: str, document: str) -> float:
    return 1.0 if query.split()[1] == document.split()[1] else 0.0


def useless(query: str, document: str) -> float:
    return 0.0


def run(inputs: dict[str, Path], tools: StageContext, name: str = "out", **params: Any) -> tuple[Path, dict[str, Any]]:
    out = tools.scratch_dir / name
    out.mkdir()
    evaluation_stage.run(Params(**{"top_k": 3, "bootstrap_samples": 999} | params), inputs, out, tools)
    return out, json.loads((out / "metrics.json").read_text())


def test_the_figures_by_hand(reranker: dict[str, Path], tools: StageContext, use: Use) -> None:
    asked = use(perfect, useless)
    out, metrics = run(reranker, tools)
    test = metrics["test"]
    # the embedder has each positive at rank 2; of question 7's two positives one is not in the list
    assert {row: test[row]["MRR@10"] for row in test} == {
        "bm25": 1.0,
        "embedder": 0.5,
        "base_reranker": round(1 / 3, 6),
        "reranker": 1.0,
        "fused": 1.0,
    }
    assert test["embedder"]["R@3"] == test["reranker"]["R@3"] == (7 + 1 / 2) / 8
    ideal = 1 + 1 / np.log2(3)
    assert test["reranker"]["nDCG@10"] == pytest.approx((7 + 1 / ideal) / 8, abs=1e-6)
    # with the positives forced in, question 7's list is [text 8, text 7, text 0]
    forced = metrics["positives_forced"]["test"]
    assert forced["embedder"]["R@3"] == 1.0
    assert forced["embedder"]["MAP@100"] == pytest.approx((7 * 1 / 2 + (1 / 2 + 2 / 3) / 2) / 8, abs=1e-6)
    # z of (0.9, 0.8, 0.1) puts the positive 0.281 behind, z of (0, 1, 0) 2.121 ahead: it leads from w = 0.117 on
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
    }
    assert metrics["collapse_reason"] is None
    assert metrics["base_has_new_head"] is True
    assert metrics["parameters"] == {
        "top_k": 3,
        "max_queries": 300,
        "bootstrap_samples": 999,
        "seed": 42,
        "dtype": "auto",
    }
    # 3 documents for each of 16 questions, and two forced in: each pair once a model
    assert [len(pairs) for pairs in asked] == [50, 50]
    assert len(set(asked[0])) == 25  # dev and test ask the same of the same

    values = read_table(out / "per_query.parquet", PER_QUERY_METRICS)
    assert values["split"].unique(maintain_order=True).to_list() == ["dev", "dev_forced", "test", "test_forced"]
    assert values.height == 4 * 5 * 8 * 8  # lists, rows, questions, metrics
    one = values.filter(
        (pl.col("query_id") == "test-7") & (pl.col("metric") == "R@3") & (pl.col("system") == "reranker")
    )
    assert one.select("split", "group", "value").rows() == [("test", "gtest-7", 0.5), ("test_forced", "gtest-7", 1.0)]


def test_the_table_for_the_terminal(reranker: dict[str, Path], tools: StageContext, use: Use) -> None:
    use(perfect, useless)
    _, metrics = run(reranker, tools)
    table = format_metrics_table(metrics)
    assert table[0] == ["", "nDCG@10", "MRR@10", "MAP@100", "Hit@1", "R@3", "nDCG@10 against the embedder"]
    assert [line[0] for line in table[1:]] == [
        "BM25",
        "embedder",
        "base reranker",
        "trained reranker",
        "fused, weight 0.15",
    ]
    assert table[2] == ["embedder", "0.600", "0.500", "0.469", "0.000", "0.938", ""]
    assert table[4][1:6] == ["0.952", "1.000", "0.938", "1.000", "0.938"]
    assert table[4][6].startswith("+0.351 [+")
    assert table[4][6].endswith("p = 0.002")


def test_few_questions_are_said_not_tested(reranker: dict[str, Path], tools: StageContext, log: Log, use: Use) -> None:
    asked = use(perfect, useless)
    _, metrics = run(reranker, tools, max_queries=3)
    assert metrics["candidate_lists"]["dev"]["n_queries"] == 3
    assert metrics["candidate_lists"]["dev"]["n_queries_available"] == 8
    assert metrics["comparisons"]["test"]["reranker"]["Hit@1"] == {
        "difference": 1.0,
        "low": None,
        "high": None,
        "p": None,
    }
    assert format_metrics_table(metrics)[4][6].endswith("(too few groups to test)")
    assert "test: 3 of 8 questions are evaluated (max_queries)" in log.said
    assert "test: with 3 groups of questions no difference can be told from luck" in log.said
    assert len(asked[0]) < 25


def test_lists_that_are_shorter_than_asked_for_are_said(
    reranker: dict[str, Path], tools: StageContext, log: Log, use: Use
) -> None:
    use(perfect, useless)
    run(reranker, tools, top_k=5)
    assert "some lists hold 3 documents, not top_k = 5: mined no deeper (depth)" in log.said


@pytest.mark.parametrize("empty", ["dev", "test"])
def test_an_empty_split_is_there_and_said(
    empty: str, reranker: dict[str, Path], tools: StageContext, log: Log, use: Use
) -> None:
    use(perfect, useless)
    queries = pl.read_parquet(reranker["queries"]).with_columns(split=pl.col("split").replace({empty: "train"}))
    write_table(queries, QUERIES, reranker["queries"])
    _, metrics = run(reranker, tools)
    assert metrics[empty] == metrics["comparisons"][empty] == metrics["positives_forced"][empty] == {}
    assert metrics["candidate_lists"][empty]["n_queries"] == 0
    assert metrics["fusion"] == (
        {"weight": 0.5, "selected_on": None} if empty == "dev" else {"weight": 0.15, "selected_on": "dev"}
    )
    assert f"{empty}: no question has a positive, so there is nothing to evaluate" in log.said
    assert format_metrics_table(metrics, empty) == []


def test_nothing_to_evaluate(reranker: dict[str, Path], tools: StageContext) -> None:
    queries = pl.read_parquet(reranker["queries"]).with_columns(split=pl.lit("train"))
    write_table(queries, QUERIES, reranker["queries"])
    out, metrics = run(reranker, tools)
    assert metrics["dev"] == metrics["test"] == {}
    assert read_table(out / "per_query.parquet", PER_QUERY_METRICS).is_empty()


def test_a_collapse_is_named(reranker: dict[str, Path], tools: StageContext, use: Use) -> None:
    use(useless, perfect)
    out = tools.scratch_dir / "out"
    out.mkdir()
    summary = evaluation_stage.run(Params(top_k=3), reranker, out, tools)
    assert "same score" in summary["collapse_reason"]
    assert summary["test"]["reranker"]["Hit@1"] == 0


def scored(*lists: list[float]) -> pl.DataFrame:
    rows = [("test", f"q{number}", score) for number, scores in enumerate(lists) for score in scores]
    schema = {"list": pl.String, "query_id": pl.String, "reranker": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (scored([0.1, 0.5, 0.3], [0.1, 0.1, 0.2]), None),
        (scored([0.1, 0.1], [9.0, 9.0]), "same score"),
        (scored([float("nan"), 0.1, 0.2]), "not all finite"),
        (scored([0.0] * 40 + [1.0]), "97.5% of neighbours"),
        (scored([0.0] * 18 + [1.0, 2.0]), None),
        (scored([0.5], [0.7]), None),
        (scored(), None),
    ],
)
def test_what_counts_as_collapsed(table: pl.DataFrame, expected: str | None) -> None:
    found = detect_score_collapse(table)
    assert found is None if expected is None else found is not None and expected in found


def test_real_models_twice_the_same_bytes(reranker: dict[str, Path], tools: StageContext, log: Log) -> None:
    one, metrics = run(reranker, tools, "one", device="cpu")
    two, _ = run(reranker, tools, "two", device="cpu")
    for name in ("metrics.json", "per_query.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert metrics["test"]["bm25"]["Hit@1"] == 1.0
    assert log.done[-1] == (100, 100)
    assert any("random head" in line for line in log.said)


def test_the_gate_scores_the_published_model_on_the_new_lists(
    reranker: dict[str, Path], tools: StageContext, use: Use
) -> None:
    use(useless, useless)
    out, _ = run(reranker, tools)
    inputs = reranker | {
        "per_query": out / "per_query.parquet",
        "metrics": out / "metrics.json",
        "published_reranker": tools.scratch_dir / "published",
        "published_queries": reranker["queries"],
    }
    asked = use(perfect)
    (tools.scratch_dir / "gate").mkdir()
    found = regression_gate.run(
        regression_gate.Params(metric="MRR@10", bootstrap_samples=999), inputs, tools.scratch_dir / "gate", tools
    )
    assert found == {
        "metric": "MRR@10",
        "new_mean": round(1 / 3, 6),
        "published_mean": 1.0,
        "difference": round(-2 / 3, 6),
        "low": round(-2 / 3, 6),
        "high": round(-2 / 3, 6),
        "p": 0.002,
        "verdict": "worse",
        "n_queries": 8,
    }
    assert json.loads((tools.scratch_dir / "gate" / "gate.json").read_text()) == found
    assert len(asked[0]) == 24  # test only, and nothing forced in


def test_the_gate_leaves_out_what_the_published_model_was_trained_on(
    reranker: dict[str, Path], tools: StageContext, log: Log, use: Use
) -> None:
    use(useless, useless)
    out, _ = run(reranker, tools)
    before = pl.read_parquet(reranker["queries"]).filter(pl.col("query_id") != "test-2")
    seen = pl.col("query_id").is_in(["test-0", "test-1"])
    write_table(
        before.with_columns(split=pl.when(seen).then(pl.lit("train")).otherwise("split")), QUERIES, out / "before"
    )
    inputs = reranker | {
        "per_query": out / "per_query.parquet",
        "metrics": out / "metrics.json",
        "published_reranker": out / "published",
        "published_queries": out / "before",
    }
    asked = use(perfect)
    (tools.scratch_dir / "gate").mkdir()
    found = regression_gate.run(regression_gate.Params(), inputs, tools.scratch_dir / "gate", tools)
    assert found["n_queries"] == 6  # a question that is new is one it has not seen
    assert {query for query, _ in asked[0]} == {f"about {number}" for number in range(2, 8)}
    assert any("gate: 2 test questions were in train or dev before" in line for line in log.said)


def test_the_same_model_passes_the_gate_with_no_difference(reranker: dict[str, Path], tools: StageContext) -> None:
    out, _ = run(reranker, tools, device="cpu")
    inputs = reranker | {
        "per_query": out / "per_query.parquet",
        "metrics": out / "metrics.json",
        "published_reranker": reranker["reranker"],
        "published_queries": reranker["queries"],
    }
    (tools.scratch_dir / "gate").mkdir()
    found = regression_gate.run(regression_gate.Params(device="cpu"), inputs, tools.scratch_dir / "gate", tools)
    assert found["verdict"] == "same"
    assert found["difference"] == 0.0
    assert found["p"] == 1.0


def test_a_base_with_a_head_is_scored_as_it_came(reranker: dict[str, Path], tools: StageContext, log: Log) -> None:
    _, metrics = run(reranker | {"base_model": reranker["reranker"]}, tools, device="cpu")
    assert metrics["base_has_new_head"] is False
    assert metrics["test"]["base_reranker"] == metrics["test"]["reranker"]
    assert not any("random head" in line for line in log.said)


def test_figures_do_not_hang_on_where_the_base_lies(
    reranker: dict[str, Path], tools: StageContext, tiny_model: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere" / "renamed"))
    one, _ = run(reranker, tools, "one", device="cpu")
    two, _ = run(reranker | {"base_model": moved}, tools, "two", device="cpu")
    for name in ("metrics.json", "per_query.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_gate_has_nothing_to_compare_on_without_test(reranker: dict[str, Path], tools: StageContext) -> None:
    queries = pl.read_parquet(reranker["queries"]).with_columns(split=pl.lit("train"))
    write_table(queries, QUERIES, reranker["queries"])
    out, _ = run(reranker, tools)
    inputs = reranker | {
        "per_query": out / "per_query.parquet",
        "metrics": out / "metrics.json",
        "published_reranker": out / "none",
        "published_queries": reranker["queries"],
    }
    (tools.scratch_dir / "gate").mkdir()
    found = regression_gate.run(regression_gate.Params(), inputs, tools.scratch_dir / "gate", tools)
    assert (found["verdict"], found["n_queries"], found["difference"]) == ("same", 0, None)
