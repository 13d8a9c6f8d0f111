"""The vectors of the rows of queries.parquet and corpus.parquet, for the stages after encode."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from stages.core.arrays import Floats, Ints
from stages.core.hashing import Hashes
from stages.core.schemas import CORPUS, QUERIES, document_text, scan_table
from stages.embedding.vector_store import VectorStore

_TABLE_BATCH_ROWS = 8_192
"""Rows of a table read at once."""
_SORT_WINDOW_TEXTS = 16_384
"""Texts held in memory at once to be sorted by length."""

ROLE_TABLES = {"query": "queries", "document": "corpus"}
"""The role of a text -> the table that holds it."""


def read_encodings(path: Path) -> list[dict[str, Any]]:
    """The description of each encoder in encoder.json, the first encoder first."""
    first = json.loads(path.read_text())
    return [first, *first.get("extra_encoders", [])]


class VectorLookup:
    """The vectors that one encoder gave the rows of queries.parquet and corpus.parquet.

    `inputs` holds the paths of encode's encoder.json ("encoder") and text_hashes.npy ("text_hashes"). `store_root` is
    the folder of the vector stores (`StageContext.vectors_dir`). Encoder 0 is `model`, the others are `extra_models` in
    order. Raises `KeyError` if a vector is missing.
    """

    def __init__(self, inputs: Mapping[str, Path], store_root: Path, encoder_index: int = 0) -> None:
        encoding = read_encodings(inputs["encoder"])[encoder_index]
        self.store = VectorStore(store_root / encoding["encoder_key"])
        self.dimension: int = encoding["dimension"]
        text_hashes: Hashes = np.load(inputs["text_hashes"], mmap_mode="r")[encoder_index]
        self.query_hashes = text_hashes[: encoding["queries"]]
        """[n queries, 16]: the hash of the text of each row of queries.parquet."""
        self.document_hashes = text_hashes[encoding["queries"] :]
        """[n documents, 16]: the same for corpus.parquet."""
        self._query_positions = self.store.locate(self.query_hashes)
        self._document_positions = self.store.locate(self.document_hashes)

    def read_queries(self, rows: Ints) -> Floats:
        """The vectors of these rows of queries.parquet: float32 [n, d]."""
        return self.store.read_at(self._query_positions[rows])

    def read_documents(self, rows: Ints) -> Floats:
        """The vectors of these rows of corpus.parquet: float32 [n, d]."""
        return self.store.read_at(self._document_positions[rows])


def read_text_blocks(path: Path, role: str) -> Iterator[list[str]]:
    """The texts of a table in batches, without the encoder's prompt.

    `role` is "query" for a table of queries, "document" for a corpus (texts with titles).
    """
    schema, columns = (QUERIES, ["query"]) if role == "query" else (CORPUS, ["text", "title"])
    text = pl.col("query") if role == "query" else document_text(columns)
    scan_table(path, schema)  # checks the columns
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_TABLE_BATCH_ROWS, columns=columns):
            yield pl.DataFrame(pl.from_arrow(batch)).select(text).to_series().to_list()


def read_text_windows(
    path: Path, role: str, mask: npt.NDArray[np.bool_], hashes: Hashes
) -> Iterator[tuple[list[str], Hashes]]:
    """The texts and hashes of the rows in `mask`, in windows of at most _SORT_WINDOW_TEXTS."""
    window: list[str] = []
    rows: list[int] = []
    row = 0
    for texts in read_text_blocks(path, role):
        for offset in np.flatnonzero(mask[row : row + len(texts)]).tolist():
            window.append(texts[offset])
            rows.append(row + offset)
            if len(window) == _SORT_WINDOW_TEXTS:
                yield window, hashes[rows]
                window, rows = [], []
        row += len(texts)
    if window:
        yield window, hashes[rows]
