import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core.context import StageContext
from stages.core.device import detect_device_type
from stages.core.errors import InputError
from stages.core.hashing import hash_texts
from stages.core.schemas import CANDIDATES, CORPUS, QRELS, QRELS_SCORED, QUERIES, read_table, write_table
from stages.embedding.vector_store import VectorStore
from stages.retrieval import stage as search_module
from stages.retrieval.stage import Params, choose_device_and_dtype, measure_mrr, run
from tests.encodings import write_encodings
from tests.fakes import RecordedProgress


def floats(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


VECTORS = {"q one": [1, 0], "q two": [0, 1], "red": [0.6, 0.8], "T green": [1, 0], "blue": [0.6, 0.8]}

ONE_ENCODER = {"key": "first"}
TWO_ENCODERS = ONE_ENCODER | {"other": "second"}


def test_mrr_counts_the_first_positive_of_each_query_that_has_one() -> None:
    rows = [
        *[("q1", "a", "dense", 1), ("q1", "b", "dense", 2), ("q1", "c", "dense", 4)],
        *[("q2", "a", "dense", 1), ("q2", "b", "dense", 11), ("q3", "a", "dense", 1)],
        *[("q1", "b", "bm25", 3), ("q1", "c", "bm25", 1), ("q1", "a", "window", 2), ("q1", "b", "random", 1)],
    ]
    candidates = pl.LazyFrame(rows, ["query_id", "doc_id", "source", "rank"], orient="row")
    qrels = pl.DataFrame(
        {"query_id": ["q1", "q1", "q2", "q3"], "doc_id": ["b", "c", "b", "a"], "relevance": [1, 2, 1, 0]}
    )
    # q1: 1/2 by dense, 1 by bm25; q2: not among its first ten; q3 has no positive
    assert measure_mrr(candidates, qrels) == {"bm25": 0.5, "dense": 0.25}
    assert measure_mrr(candidates, qrels.head(0)) == {}
    assert measure_mrr(candidates, qrels.filter(pl.col("query_id") == "q2")) == {"bm25": 0.0, "dense": 0.0}


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
    VectorStore(tmp_path / "vectors/key").append(hash_texts(VECTORS), floats(list(VECTORS.values())))
    yield tmp_path


def search(
    workspace: Path,
    params: Params,
    progress: RecordedProgress | None = None,
    models: Mapping[str, str] = ONE_ENCODER,
) -> dict[str, Any]:
    """A search from nothing; test_incremental.py has those that go on from another."""
    for lists in (workspace / "vectors").glob("*/topk_cache"):
        shutil.rmtree(lists)
    names = {"queries": "queries.parquet", "corpus": "corpus.parquet", "qrels": "qrels.parquet"}
    inputs = {name: workspace / file for name, file in names.items()}
    inputs |= write_encodings(workspace, models)
    tools = StageContext(
        progress or RecordedProgress(), workspace / "scratch", workspace / "vectors", workspace / "logs"
    )
    return run(params, inputs, workspace / "out", tools)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_candidates_and_judged_tables(workspace: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "DOCUMENTS_PER_BLOCK", block)
    summary = search(workspace, Params(top_k=2))
    lists = {"dense": {"n_new_documents": 3, "n_merged_queries": 0, "n_searched_queries": 2}}
    counts = {"queries": 2, "documents": 3, "candidates": 4, "candidates_by_source": {"dense": 4}, "qrels_scored": 2}
    assert summary.pop("encoder_fit") == json.loads((workspace / "out/encoder_fit.json").read_text())
    quality = {"queries": 1, "hit_at_10": 0.0, "mrr_at_10": 0.0, "recall_at_100": 0.0}
    assert summary == counts | {
        "mrr_at_10": {"dense": 0.0}, "train_ranking": {"dense": quality}, "topk_cache": lists, "model": "first",
    }  # fmt: skip
    candidates = read_table(workspace / "out/candidates.parquet", CANDIDATES)
    near, far = float(np.float32(0.8)), float(np.float32(0.6))
    assert candidates.rows() == [
        ("q1", "b", "dense", 1, 1.0),
        ("q1", "a", "dense", 2, far),
        ("q2", "a", "dense", 1, near),
        ("q2", "c", "dense", 2, near),
    ]
    judged = read_table(workspace / "out/qrels_scored.parquet", QRELS_SCORED)
    assert judged.rows() == [("q1", "c", 1, far), ("q2", "b", 0, 0.0)]


def test_the_block_size_changes_no_byte(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = set()
    for block in (1, 100):
        monkeypatch.setattr(search_module, "DOCUMENTS_PER_BLOCK", block)
        search(workspace, Params())
        contents.add((workspace / "out/candidates.parquet").read_bytes())
    assert len(contents) == 1


def test_no_judgements_and_a_depth_beyond_the_corpus(workspace: Path) -> None:
    write_table(read_table(workspace / "qrels.parquet", QRELS).clear(), QRELS, workspace / "qrels.parquet")
    summary = search(workspace, Params(top_k=200))
    assert (summary["candidates"], summary["candidates_by_source"], summary["qrels_scored"]) == (6, {"dense": 6}, 0)
    assert read_table(workspace / "out/qrels_scored.parquet", QRELS_SCORED).height == 0


def test_a_depth_beyond_the_corpus_takes_no_memory(workspace: Path) -> None:
    assert search(workspace, Params(top_k=10**15))["candidates"] == 6


def test_one_document(workspace: Path) -> None:
    write_table(read_table(workspace / "corpus.parquet", CORPUS).head(1), CORPUS, workspace / "corpus.parquet")
    write_table(read_table(workspace / "qrels.parquet", QRELS).clear(), QRELS, workspace / "qrels.parquet")
    assert search(workspace, Params())["candidates"] == 2


def test_a_vector_that_is_not_finite_is_named(workspace: Path) -> None:
    VectorStore(workspace / "vectors/nan").append(
        hash_texts(VECTORS), floats([[1, 0], [0, 1], [1, 0], [float("nan"), 0], [0, 1]])
    )
    with pytest.raises(InputError, match="document 'b' is not finite"):
        search(workspace, Params(), models={"nan": "first"})


def test_judgements_of_an_unknown_document_are_a_defect(workspace: Path) -> None:
    qrels = read_table(workspace / "qrels.parquet", QRELS).with_columns(doc_id=pl.lit("zzz"))
    write_table(qrels, QRELS, workspace / "qrels.parquet")
    with pytest.raises(ValueError, match="'zzz', which is not in its table"):
        search(workspace, Params())


def add_encoder(workspace: Path) -> None:
    """Store the vectors of a second encoder, whose axes are those of the first in reverse order."""
    reversed_vectors = floats([vector[::-1] for vector in VECTORS.values()])
    VectorStore(workspace / "vectors/other").append(hash_texts(VECTORS), reversed_vectors)


def test_each_source_has_its_rows_with_its_own_rank_and_score(workspace: Path) -> None:
    corpus = read_table(workspace / "corpus.parquet", CORPUS)
    texts = pl.Series("text", ["two reds", "green", "one and blue"])
    write_table(corpus.with_columns(texts), CORPUS, workspace / "corpus.parquet")
    VectorStore(workspace / "vectors/key").append(
        hash_texts(["two reds", "T green", "one and blue"]), floats([[0.6, 0.8], [1, 0], [0.6, 0.8]])
    )
    params = Params(top_k=2, sources=("random:1-3", "dense:1", "bm25"))
    summary = search(workspace, params)
    assert summary["candidates_by_source"] == {"random": 4, "dense": 2, "bm25": 2}
    assert summary["candidates"] == 8
    rows = read_table(workspace / "out/candidates.parquet", CANDIDATES).rows()
    assert [(query, source, rank) for query, _, source, rank, _ in rows] == [
        (query, *place) for query in ("q1", "q2") for place in (("random", 2), ("random", 3), ("dense", 1), ("bm25", 1))
    ]
    near, idf = float(np.float32(0.8)), np.log(1 + 2.5 / 1.5)
    assert [(query, doc, score) for query, doc, source, _, score in rows if source == "dense"] == [
        ("q1", "b", 1.0),
        ("q2", "a", near),
    ]
    weights = {length: idf / (1 + 1.2 * (0.25 + 0.75 * length / (7 / 3))) for length in (2, 3)}  # 2, 2 and 3 words
    assert [(query, doc, score) for query, doc, source, _, score in rows if source == "bm25"] == [
        ("q1", "c", pytest.approx(weights[3])),
        ("q2", "a", pytest.approx(weights[2])),
    ]
    assert {score for *_, source, _, score in rows if source == "random"} == {0.0}
    whole = search(workspace, Params(top_k=9, sources=("dense", "random:3")))
    assert whole["candidates_by_source"] == {"dense": 6, "random": 6}


def test_a_second_encoder_is_a_source_of_its_own(workspace: Path) -> None:
    add_encoder(workspace)
    summary = search(workspace, Params(top_k=2, sources=("dense", "dense2:1")), models=TWO_ENCODERS)
    assert summary["candidates_by_source"] == {"dense": 4, "dense2": 2}
    rows = read_table(workspace / "out/candidates.parquet", CANDIDATES).filter(pl.col("source") == "dense2").rows()
    # the query q two is [1, 0] there, and green [0, 1]
    assert rows == [("q1", "b", "dense2", 1, 1.0), ("q2", "a", "dense2", 1, float(np.float32(0.8)))]
    alone = read_table(workspace / "out/qrels_scored.parquet", QRELS_SCORED)
    assert alone["score"].to_list() == [float(np.float32(0.6)), 0.0]


def test_a_source_without_an_encoder_is_an_error_and_an_unused_encoder_is_logged(workspace: Path) -> None:
    with pytest.raises(InputError, match=r"the source dense2 has no encoder: .* \(now: none\)"):
        search(workspace, Params(sources=("dense", "dense2")))
    add_encoder(workspace)
    with pytest.raises(InputError, match=r"the source dense3 has no encoder: .* \(now: dense2 is second\)"):
        search(workspace, Params(sources=("dense", "dense3")), models=TWO_ENCODERS)
    progress = RecordedProgress()
    search(workspace, Params(sources=("dense",)), progress, TWO_ENCODERS)
    assert progress.messages == [
        "no source uses the encoder second: add dense2 to sources, or remove it from extra_models"
    ]
    progress.messages.clear()
    search(workspace, Params(sources=("dense", "dense2")), progress, TWO_ENCODERS)
    assert progress.messages == []


@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (2, 1)])
def test_cuts_of_the_queries_change_no_row(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, queries: int, rows: int
) -> None:
    params = Params(top_k=2, sources=("dense", "bm25", "random:2"))
    whole = search(workspace, params)
    expected = read_table(workspace / "out/candidates.parquet", CANDIDATES)
    monkeypatch.setattr(search_module, "_SEARCH_BATCH_QUERIES", queries)
    monkeypatch.setattr(search_module, "_WRITE_BATCH_QUERIES", rows)
    assert search(workspace, params) == whole
    assert read_table(workspace / "out/candidates.parquet", CANDIDATES).equals(expected)


def test_the_first_rows_of_dense_are_the_same_beside_other_sources(workspace: Path) -> None:
    search(workspace, Params(top_k=2))
    alone = read_table(workspace / "out/candidates.parquet", CANDIDATES)
    judged = (workspace / "out/qrels_scored.parquet").read_bytes()
    search(workspace, Params(top_k=2, sources=("random:1", "dense", "bm25")))
    both = read_table(workspace / "out/candidates.parquet", CANDIDATES)
    assert both.filter(pl.col("source") == "dense").equals(alone)
    assert (workspace / "out/qrels_scored.parquet").read_bytes() == judged


@pytest.mark.skipif(detect_device_type() == "cuda", reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_that_names_the_option() -> None:
    assert [choose_device_and_dtype(Params(device=device), 1)[0] for device in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(InputError, match=r"^device = 'cuda': .* Try device = 'cpu'\.$"):
        choose_device_and_dtype(Params(device="cuda"), 1)


def test_bfloat16_is_for_devices_that_have_it_and_enough_to_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.core.device._cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("stages.core.device._gpus", lambda: (9,))
    monkeypatch.setattr("stages.retrieval.stage.pick_device", lambda device: device)
    assert choose_device_and_dtype(Params(device="cpu"), 2**39 - 1) == ("cpu", "float32")
    assert choose_device_and_dtype(Params(device="cpu"), 2**39) == ("cpu", "bfloat16")
    assert choose_device_and_dtype(Params(device="cpu", dtype="float32"), 2**50) == ("cpu", "float32")
    assert choose_device_and_dtype(Params(), 1) == ("cuda", "bfloat16")
    monkeypatch.setattr("stages.core.device._cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("stages.core.device._gpus", lambda: (7,))
    assert [choose_device_and_dtype(Params(device=device), 2**50)[1] for device in ("cpu", "cuda")] == ["float32"] * 2
    assert choose_device_and_dtype(Params(device="cpu", dtype="bfloat16"), 1) == ("cpu", "bfloat16")


def test_the_format_that_is_multiplied_in_changes_no_byte(workspace: Path) -> None:
    made = []
    for dtype in ("float32", "bfloat16"):
        search(workspace, Params(top_k=2, dtype=dtype))
        made.append(
            [(workspace / "out" / name).read_bytes() for name in ("candidates.parquet", "qrels_scored.parquet")]
        )
    assert made[0] == made[1]
