"""What is counted of a table, on rows that can be counted by eye."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.core.hashing import hash_texts
from stages.embedding.encoder import resolve_encoder_spec
from stages.embedding.stage import Params, find_missing_texts
from stages.embedding.vector_store import VectorStore
from stages.planning.workload import counted, limit_of, read


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Four questions (three train, one of them without a positive) and three documents, one a question's text."""
    frames = {
        "queries": (
            schemas.QUERIES,
            pl.DataFrame(
                [
                    ("q1", "ab", "train", "g"),
                    ("q2", "abc", "train", "g"),
                    ("q3", "a", "train", "g"),
                    ("q4", "abcd", "test", "g"),
                ],
                schema=["query_id", "query", "split", "group"],
                orient="row",
            ),
        ),
        "corpus": (
            schemas.CORPUS,
            pl.DataFrame({"doc_id": ["d1", "d2", "d3"], "text": ["ab", "abcde", "abcdef"], "title": [None, "t", None]}),
        ),
        "qrels": (
            schemas.QRELS,
            pl.DataFrame(
                [("q1", "d1", 1), ("q1", "d2", 1), ("q2", "d3", 1), ("q3", "d3", 0), ("q4", "d1", 2)],
                schema=["query_id", "doc_id", "relevance"],
                orient="row",
            ),
        ),
        "answers": (schemas.ANSWERS, pl.DataFrame({"query_id": ["q1", "q1", "q4"], "answer": ["x", "y", "z"]})),
    }
    for name, (schema, frame) in frames.items():
        schemas.write_table(frame, schema, tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in frames}


def test_counts(inputs: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    table = read(Params(model=str(tiny_model)), str(tiny_model), inputs, tmp_path / "vectors")
    assert (table.queries, table.documents) == (4, 3)
    assert (table.splits, table.train) == ({"test": 1, "train": 2}, 2)
    assert (table.positives, table.several, table.answered) == (1.5, 1, 2)
    assert table.characters == 2 + 7 + 6  # a document is read with its title and a space
    (encoding,) = table.encodings
    # "ab" is a question and a document, and is encoded once
    assert encoding.new == {"query": 4, "document": 2}
    assert sorted(encoding.texts) == [("document", "abcdef"), ("document", "t abcde")] + [
        ("query", text) for text in ("a", "ab", "abc", "abcd")
    ]
    # the tiny model's tokens are letters, between [CLS] and [SEP]
    tokens = {text: int(count) for (_, text), count in zip(encoding.texts, encoding.tokens, strict=True)}
    assert tokens == {"a": 3, "ab": 4, "abc": 5, "abcd": 6, "abcdef": 8, "t abcde": 8}
    assert encoding.weight.tolist() == [1.0] * 6
    assert (encoding.limit, encoding.begun, encoding.went_on) == (128, False, False)
    # the pairs' questions are train questions with a positive; [CLS] question [SEP] document [SEP]
    assert {query for query, _ in table.pairs} == {"ab", "abc"}
    assert [len(q) + len(d.replace(" ", "")) + 3 for q, d in table.pairs] == table.pair_tokens.tolist()


def test_texts_with_a_vector_are_not_counted(inputs: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    params, root = Params(model=str(tiny_model), document_prompt="p "), tmp_path / "vectors"
    made = resolve_encoder_spec(str(tiny_model), document_prompt="p ")
    store = VectorStore(root / made.key)
    texts = ["abc", "p abcdef"]
    store.append(hash_texts(texts), np.ones((2, 32), np.float32))
    ((found, rows),) = find_missing_texts(params, inputs, root)
    assert found == made
    assert rows["query"].tolist() == [True, False, True, True]
    assert rows["document"].tolist() == [True, True, False]
    table = read(params, str(tiny_model), inputs, root)
    assert table.encodings[0].new == {"query": 3, "document": 2}
    assert table.encodings[0].begun


def test_a_sample_stands_for_all(inputs: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("stages.planning.workload.SAMPLE", 2)
    (encoding,) = read(Params(model=str(tiny_model)), str(tiny_model), inputs, tmp_path / "vectors").encodings
    assert encoding.weight.tolist() == [2.0, 2.0, 1.0, 1.0]
    assert [role for role, _ in encoding.texts] == ["query", "query", "document", "document"]


def test_the_limit_of_a_model_is_what_its_files_say(tiny_model: Path, tmp_path: Path) -> None:
    assert limit_of(tiny_model) == 128
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    assert limit_of(tmp_path) == 77
    assert limit_of(tmp_path / "nothing") == 512
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 300}')
    assert limit_of(tmp_path) == 300


def test_no_text_has_no_tokens(tiny_model: Path) -> None:
    assert counted(tiny_model, []).tolist() == []
