import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.contracts import CANDIDATES, CORPUS, JUDGED, QRELS, QUERIES, Tools, read_table, write_table
from stages.errors import InputError
from stages.retrieval.search import Params, run
from stages.retrieval.vectors import VectorStore, text_hashes


def floats(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


class Quiet:
    def advance(self, done: int, total: int | None, unit: str) -> None: ...

    def say(self, message: str) -> None: ...


VECTORS = {"q one": [1, 0], "q two": [0, 1], "red": [0.6, 0.8], "T green": [1, 0], "blue": [0.6, 0.8]}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """Two queries and three documents ("a" and "c" with equal vectors), encoded by hand."""
    (tmp_path / "out").mkdir()
    queries = {"query_id": ["q1", "q2"], "query": ["q one", "q two"], "split": ["train", "test"], "group": ["g", "h"]}
    corpus = {"doc_id": ["a", "b", "c"], "text": ["red", "green", "blue"], "title": [None, "T", ""]}
    qrels = {"query_id": ["q1", "q2"], "doc_id": ["c", "b"], "relevance": [1, 0]}
    write_table(pl.DataFrame(queries), QUERIES, tmp_path / "queries.parquet")
    write_table(pl.DataFrame(corpus), CORPUS, tmp_path / "corpus.parquet")
    frame = pl.DataFrame(qrels, schema_overrides={"relevance": pl.Int32})
    write_table(frame, QRELS, tmp_path / "qrels.parquet")
    encoding = {
        "encoder": "key",
        "model": "first",
        "dimension": 2,
        "title": True,
        "salts": {"query": "", "document": ""},
    }
    (tmp_path / "encoding.json").write_text(json.dumps(encoding))
    VectorStore(tmp_path / "vectors/key").append(text_hashes(VECTORS), floats(list(VECTORS.values())))
    yield tmp_path


def search(workspace: Path, params: Params) -> dict[str, int]:
    names = {"queries": "queries.parquet", "corpus": "corpus.parquet", "qrels": "qrels.parquet"}
    inputs = {name: workspace / file for name, file in names.items()} | {"encoding": workspace / "encoding.json"}
    tools = Tools(Quiet(), workspace / "scratch", workspace / "vectors", workspace / "logs")
    return run(params, inputs, workspace / "out", tools)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_candidates_and_judged_tables(workspace: Path, block: int) -> None:
    summary = search(workspace, Params(depth=2, block=block))
    assert summary == {"queries": 2, "documents": 3, "candidates": 4, "by_source": {"dense": 4}, "judged": 2}
    candidates = read_table(workspace / "out/candidates.parquet", CANDIDATES)
    near, far = float(np.float32(0.8)), float(np.float32(0.6))
    assert candidates.rows() == [
        ("q1", "b", "dense", 1, 1.0),
        ("q1", "a", "dense", 2, far),
        ("q2", "a", "dense", 1, near),
        ("q2", "c", "dense", 2, near),
    ]
    judged = read_table(workspace / "out/judged.parquet", JUDGED)
    assert judged.rows() == [("q1", "c", 1, far), ("q2", "b", 0, 0.0)]


def test_the_block_size_changes_no_byte(workspace: Path) -> None:
    contents = set()
    for block in (1, 100):
        search(workspace, Params(block=block))
        contents.add((workspace / "out/candidates.parquet").read_bytes())
    assert len(contents) == 1


def test_no_judgements_and_a_depth_beyond_the_corpus(workspace: Path) -> None:
    write_table(read_table(workspace / "qrels.parquet", QRELS).clear(), QRELS, workspace / "qrels.parquet")
    summary = search(workspace, Params(depth=200))
    assert summary == {"queries": 2, "documents": 3, "candidates": 6, "by_source": {"dense": 6}, "judged": 0}
    assert read_table(workspace / "out/judged.parquet", JUDGED).height == 0


def test_a_depth_beyond_the_corpus_takes_no_memory(workspace: Path) -> None:
    assert search(workspace, Params(depth=10**15))["candidates"] == 6


def test_one_document(workspace: Path) -> None:
    write_table(read_table(workspace / "corpus.parquet", CORPUS).head(1), CORPUS, workspace / "corpus.parquet")
    write_table(read_table(workspace / "qrels.parquet", QRELS).clear(), QRELS, workspace / "qrels.parquet")
    assert search(workspace, Params())["candidates"] == 2


def test_a_vector_that_is_not_finite_is_named(workspace: Path) -> None:
    VectorStore(workspace / "vectors/nan").append(
        text_hashes(VECTORS), floats([[1, 0], [0, 1], [1, 0], [float("nan"), 0], [0, 1]])
    )
    encoding = json.loads((workspace / "encoding.json").read_text())
    (workspace / "encoding.json").write_text(json.dumps(encoding | {"encoder": "nan"}))
    with pytest.raises(InputError, match="document 'b' is not finite"):
        search(workspace, Params())


def test_judgements_of_an_unknown_document_are_a_defect(workspace: Path) -> None:
    qrels = read_table(workspace / "qrels.parquet", QRELS).with_columns(doc_id=pl.lit("zzz"))
    write_table(qrels, QRELS, workspace / "qrels.parquet")
    with pytest.raises(ValueError, match="'zzz', which is not in its table"):
        search(workspace, Params())
