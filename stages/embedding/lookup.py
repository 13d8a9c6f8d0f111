"""What encode has made, for the stages after it: from rows of the tables to the vectors in the store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.schemas import document_text
from stages.embedding.vector_store import Floats, Hashes, VectorStore, text_hashes


def encodings(path: Path) -> list[dict[str, Any]]:
    """What encoding.json says of each encoder, the first one's first."""
    first = json.loads(path.read_text())
    return [first, *first.get("more", [])]


class Vectors:
    """From rows of the tables to their vectors, for the stages after this one.

    `encoding` is the encode stage's encoding.json, `root` the vector store's (`tools.vectors`), `number` the encoder's:
    0 is `model`, 1 and on are `more_models`.
    """

    def __init__(self, encoding: Path, root: Path, number: int = 0) -> None:
        self.encoding = encodings(encoding)[number]
        self.store = VectorStore(root / self.encoding["encoder"])
        self.dimension: int = self.encoding["dimension"]

    def query_hashes(self, frame: pl.DataFrame) -> Hashes:
        """Hashes of the rows of `frame` (column query): uint8 [n, 16], for `self.read`."""
        return self._hashes(frame, "query")

    def document_hashes(self, frame: pl.DataFrame) -> Hashes:
        """Hashes of the rows of `frame` (columns text and, where there is one, title): uint8 [n, 16]."""
        return self._hashes(frame, "document")

    def read(self, hashes: Hashes) -> Floats:
        """Vectors of hashes, float32 [n, d]; `KeyError` where one was not encoded."""
        return self.store.read(hashes)

    def places(self, hashes: Hashes) -> NDArray[np.int64]:
        """Where the vectors of hashes stand, for `at`: [n]; `KeyError` where one was not encoded."""
        return self.store.places(hashes)

    def at(self, places: NDArray[np.int64]) -> Floats:
        """The vectors in these places, float32 [n, d]."""
        return self.store.at(places)

    def queries(self, frame: pl.DataFrame) -> Floats:
        """Vectors of the rows of `frame` (column query): float32 [n, d]."""
        return self.read(self.query_hashes(frame))

    def documents(self, frame: pl.DataFrame) -> Floats:
        """Vectors of the rows of `frame` (columns text and, where there is one, title): float32 [n, d]."""
        return self.read(self.document_hashes(frame))

    def _hashes(self, frame: pl.DataFrame, role: str) -> Hashes:
        return text_hashes(encoder_texts(frame, role), self.encoding["salts"][role])


def encoder_texts(frame: pl.DataFrame, role: str) -> list[str]:
    """What the encoder reads of each row, before its prompt: the query; or title (if any), a space and the text."""
    if role == "query":
        return frame["query"].to_list()
    return frame.select(document_text(frame.columns))["text"].to_list()
