"""Eight queries a split with known rankings, and a way to put functions in the place of cross-encoders."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from stages.core.context import StageContext
from stages.core.schemas import CANDIDATES, CORPUS, NEAR_DUPLICATES, QRELS, QRELS_SCORED, QUERIES, write_table
from stages.evaluation import regression_gate
from stages.evaluation import stage as evaluation_stage
from tests.fakes import RecordedProgress
from tests.unit.stages.evaluation.small_evaluation import (
    QUERIES_PER_SPLIT,
    Pairs,
    Scorer,
    UseScorers,
)


@pytest.fixture
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture
def context(tmp_path: Path, progress: RecordedProgress) -> StageContext:
    return StageContext(progress, tmp_path, tmp_path, tmp_path)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Eight queries a split, each about one document; the embedder ranks another one slightly higher.

    Query dev-3 asks for the document "text 3". Its list is [text 4, text 3, text 5]. dev-7 and test-7 have another
    positive, "text 0", which is not in their lists.
    """
    ids = [f"{split}-{number}" for split in ("dev", "test") for number in range(QUERIES_PER_SPLIT)]
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
    frames = {
        "queries": (queries, QUERIES),
        "corpus": (corpus, CORPUS),
        "qrels": (qrels, QRELS),
        "candidates": (candidates, CANDIDATES),
        "qrels_scored": (qrels.with_columns(score=pl.lit(0.05)), QRELS_SCORED),
        "near_duplicates": (pl.DataFrame(schema={"doc_id": pl.String, "cluster": pl.String}), NEAR_DUPLICATES),
    }
    for name, (frame, schema) in frames.items():
        write_table(frame, schema, tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in frames}


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path, tables: dict[str, Path]) -> dict[str, Path]:
    """`tables` and two cross-encoders: the tiny encoder with two random heads."""
    from stages.reranking.cross_encoder import load_reranker, save_reranker

    for seed, name in enumerate(("base", "reranker")):
        save_reranker(load_reranker(tiny_model, "cpu", seed=seed), tmp_path / name)
    return tables | {"reranker": tmp_path / "reranker", "base_model": tmp_path / "base"}


@pytest.fixture
def use_scorers(monkeypatch: pytest.MonkeyPatch) -> UseScorers:
    """Puts functions of (query, document) in the place of cross-encoders; returns the pairs that each one scored."""

    def put(*scorers: Scorer) -> list[Pairs]:
        scored: list[Pairs] = []

        def score(texts: Pairs, folders: Iterable[Path], **_: Any) -> Iterator[NDArray[np.float32]]:
            for _folder, scorer in zip(folders, scorers, strict=True):
                scored.append(list(texts))
                yield np.array([scorer(*pair) for pair in texts], dtype=np.float32)

        for module in (evaluation_stage, regression_gate):
            monkeypatch.setattr(module, "score_with_cross_encoders", score)
        return scored

    return put
