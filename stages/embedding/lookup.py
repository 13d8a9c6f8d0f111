"""What encode has made, for the stages after it: from rows of the tables to the vectors in the store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.arrays import Floats
from stages.core.hashing import Hashes, hash_texts
from stages.core.schemas import document_text
from stages.embedding.vector_store import VectorStore


def read_encodings(path: Path) -> list[dict[str, Any]]:
    """What encoder.json says of each encoder, the first one's first."""
    first = json.loads(path.read_text())
    return [first, *first.get("extra_encoders", [])]


class VectorLookup:
    """From rows of the tables to their vectors, for the stages after this one.

    `encoding_path` is the encode stage's encoder.json, `store_root` the vector store's (`tools.vectors`),
    `encoder_index` the encoder's: 0 is `model`, 1 and on are `extra_models`.
    """

    def __init__(self, encoding_path: Path, store_root: Path, encoder_index: int = 0) -> None:
        self.encoding = read_encodings(encoding_path)[encoder_index]
        self.store = VectorStore(store_root / self.encoding["encoder_key"])
        self.dimension: int = self.encoding["dimension"]

    def hash_queries(self, frame: pl.DataFrame) -> Hashes:
        """Hashes of the rows of `frame` (column query): uint8 [n, 16], for `self.read`."""
        return self._hash_rows(frame, "query")

    def hash_documents(self, frame: pl.DataFrame) -> Hashes:
        """Hashes of the rows of `frame` (columns text and, where there is one, title): uint8 [n, 16]."""
        return self._hash_rows(frame, "document")

    def read(self, hashes: Hashes) -> Floats:
        """Vectors of hashes, float32 [n, d]; `KeyError` where one was not encoded."""
        return self.store.read(hashes)

    def locate(self, hashes: Hashes) -> NDArray[np.int64]:
        """Where the vectors of hashes stand, for `read_at`: [n]; `KeyError` where one was not encoded."""
        return self.store.locate(hashes)

    def read_at(self, positions: NDArray[np.int64]) -> Floats:
        """The vectors in these places, float32 [n, d]."""
        return self.store.read_at(positions)

    def read_queries(self, frame: pl.DataFrame) -> Floats:
        """Vectors of the rows of `frame` (column query): float32 [n, d]."""
        return self.read(self.hash_queries(frame))

    def read_documents(self, frame: pl.DataFrame) -> Floats:
        """Vectors of the rows of `frame` (columns text and, where there is one, title): float32 [n, d]."""
        return self.read(self.hash_documents(frame))

    def _hash_rows(self, frame: pl.DataFrame, role: str) -> Hashes:
        return hash_texts(format_encoder_texts(frame, role), self.encoding["hash_prefixes"][role])


def format_encoder_texts(frame: pl.DataFrame, role: str) -> list[str]:
    """What the encoder reads of each row, before its prompt: the query; or title (if any), a space and the text."""
    if role == "query":
        return frame["query"].to_list()
    return frame.select(document_text(frame.columns))["text"].to_list()
