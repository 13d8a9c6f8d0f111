"""Blocks of documents' vectors, as they are read from the store."""

import weakref
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core.errors import InputError
from stages.core.hashing import hash_texts
from stages.core.schemas import CORPUS, QUERIES, write_table
from stages.embedding.lookup import VectorLookup
from stages.embedding.vector_store import VectorStore
from stages.retrieval.dense import DenseRetriever, _check_vectors
from tests.encodings import write_encodings


@pytest.fixture
def dense(tmp_path: Path) -> DenseRetriever:
    """Documents d0 to d4 with the vectors [0, 0] to [4, 4], but [nan, nan] of d4; blocks of two."""
    names = [f"d{i}" for i in range(5)]
    write_table(pl.DataFrame({"doc_id": names, "text": names}), CORPUS, tmp_path / "corpus.parquet")
    vectors = np.repeat(np.float32([0, 1, 2, 3, np.nan])[:, None], 2, axis=1)
    VectorStore(tmp_path / "vectors/key").append(hash_texts(names), vectors)
    queries = pl.DataFrame(pl.from_arrow(QUERIES.empty_table()))
    write_table(queries, QUERIES, tmp_path / "queries.parquet")
    vectors = VectorLookup(write_encodings(tmp_path, {"key": "m"}), tmp_path / "vectors")
    return DenseRetriever(queries, tmp_path / "corpus.parquet", vectors, 2)


def test_documents_come_a_block_at_a_time(dense: DenseRetriever) -> None:
    assert [block[:, 0].tolist() for block in dense.read_document_blocks(np.array([3, 0, 2]))] == [[3, 0], [2]]


def test_a_block_is_not_held_once_it_is_taken(dense: DenseRetriever) -> None:
    blocks = dense.read_document_blocks(np.arange(4))
    taken = weakref.ref(next(blocks))
    assert taken() is None


def test_a_vector_that_is_not_finite_is_named(dense: DenseRetriever) -> None:
    blocks = dense.read_document_blocks(np.arange(5))
    assert [len(next(blocks)), len(next(blocks))] == [2, 2]
    with pytest.raises(InputError, match="document 'd4' is not finite"):
        next(blocks)


def test_a_vector_that_is_too_large_is_named() -> None:
    vectors = np.float32([[1e16, -1e16], [3, -2e17]])
    with pytest.raises(InputError, match=r"query 'b' has components over 1e\+17\. Encode with"):
        _check_vectors(vectors, pl.Series(["a", "b"]), "query")
