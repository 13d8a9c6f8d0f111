"""What is counted of tables that can be counted by eye."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.core.hashing import hash_texts
from stages.embedding.encoder import resolve_encoder_spec
from stages.embedding.vector_store import VectorStore
from stages.planning.workload import NewTexts, Workload, count_workload, mean_length

SUMMARY = {
    "queries": 4,
    "documents": 3,
    "splits": {"train": 3, "test": 1},
    "positives_per_query": {"mean": 1.25},
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Four queries and three documents; one text is both."""
    queries = pl.DataFrame(
        {
            "query_id": ["q1", "q2", "q3", "q4"],
            "query": ["ab", "abc", "a", "abcd"],
            "split": ["train", "train", "train", "test"],
            "group": ["g"] * 4,
        }
    )
    corpus = pl.DataFrame({"doc_id": ["d1", "d2", "d3"], "text": ["ab", "abcde", "abcdef"], "title": [None, "t", None]})
    schemas.write_table(queries, schemas.QUERIES, tmp_path / "queries.parquet")
    schemas.write_table(corpus, schemas.CORPUS, tmp_path / "corpus.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in ("queries", "corpus")}


def count(settings: dict[str, Any], model: Path, inputs: dict[str, Path], vectors: Path, **encode: Any) -> Workload:
    settings["encode"] = settings["encode"].model_copy(update={"model": str(model), **encode})
    settings["train"] = settings["train"].model_copy(update={"base": str(model)})
    return count_workload(settings, SUMMARY, inputs, vectors)


def test_tokens_are_those_of_the_models(
    inputs: dict[str, Path], tiny_model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = count(settings, tiny_model, inputs, tmp_path / "vectors")
    # the tokens of the tiny model are letters, between [CLS] and [SEP]; a document is read with its title
    assert found.query_tokens.tolist() == [4, 5, 3, 6]
    assert found.document_tokens.tolist() == [4, 8, 8]
    # [CLS] query [SEP] document [SEP], the documents in turn
    assert found.pair_tokens.tolist() == [2 + 2 + 3, 3 + 6 + 3, 1 + 6 + 3, 4 + 2 + 3]
    assert (found.n_queries, found.n_documents, found.n_positives_per_query) == (4, 3, 1.25)
    assert (found.count_split("train"), found.count_split("train", 2), found.count_split("dev")) == (3, 2, 0)
    assert found.has_new_head
    assert (found.encoder_size.hidden_size, found.encoder_size.max_length) == (32, 128)


def test_a_text_of_both_kinds_is_new_once(
    inputs: dict[str, Path], tiny_model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = count(settings, tiny_model, inputs, tmp_path / "vectors")
    assert found.new_texts == [NewTexts(4, 2, has_search=False)]


def test_texts_with_a_vector_are_not_new(
    inputs: dict[str, Path], tiny_model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    spec, root = resolve_encoder_spec(str(tiny_model), document_prompt="p "), tmp_path / "vectors"
    VectorStore(root / spec.key).append(hash_texts(["abc", "p abcdef"]), np.ones((2, 32), np.float32))
    (root / spec.key / "topk_cache").mkdir()
    found = count(settings, tiny_model, inputs, root, document_prompt="p ")
    assert found.new_texts == [NewTexts(3, 2, has_search=True)]
    assert found.document_tokens.tolist() == [5, 9, 9]


def test_large_tables_are_sampled(
    inputs: dict[str, Path],
    tiny_model: Path,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.planning.workload.SAMPLE_SIZE", 2)
    found = count(settings, tiny_model, inputs, tmp_path / "vectors")
    assert found.query_tokens.tolist() == [4, 6]  # the first and the fourth
    assert len(found.document_tokens) == len(found.pair_tokens) == 2


def test_the_verifier_is_the_base_unless_one_is_named(
    inputs: dict[str, Path], tiny_model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = count(settings, tiny_model, inputs, tmp_path / "vectors")
    assert found.verifier_size == found.base_size
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "config.json").write_text('{"hidden_size": 64, "num_hidden_layers": 3}')
    settings["verify"] = settings["verify"].model_copy(update={"verifier": str(larger)})
    assert count(settings, tiny_model, inputs, tmp_path / "vectors").verifier_size.hidden_size == 64


def test_mean_lengths_are_cut() -> None:
    assert mean_length(np.array([10, 30]), 20) == 15
    assert mean_length(np.array([], np.int64), 20) == 0
