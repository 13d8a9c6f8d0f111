"""Dense retrieval: the best documents of a query by the vectors of one encoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.contracts import CORPUS, read_table
from stages.errors import InputError
from stages.retrieval.encode import Vectors
from stages.retrieval.nearest import exact_top_k, pair_scores
from stages.retrieval.sources import Found, Ids
from stages.retrieval.vectors import Floats, Hashes


class Dense:
    """The queries (query_id, query) and documents of the tables, in their order, by the vectors of one encoder.

    `block` documents are held in memory at once.
    """

    def __init__(self, queries: pl.DataFrame, corpus: Path, vectors: Vectors, block: int) -> None:
        self.doc_ids = read_table(corpus, CORPUS, ["doc_id"])["doc_id"].rechunk()
        self._query_ids = queries["query_id"]
        self._vectors = vectors
        self._hashes = vectors.query_hashes(queries)
        self._documents = _Documents(corpus, self.doc_ids, vectors, block)

    def find(self, queries: Ids, end: int) -> Found:
        """The `end` best documents of each query, by their places; all where there are fewer.

        Raises `InputError` where a vector is not finite.
        """
        asked = self._vectors.read(self._hashes[queries])
        _require_finite(asked, self._query_ids.gather(queries), "query")
        ids, scores = exact_top_k(asked, self._documents, min(end, len(self.doc_ids)))
        return Found.ranked(np.full(len(ids), ids.shape[1]), ids.ravel(), scores.ravel())

    def scores(self, queries: Ids, documents: Ids) -> Floats:
        """The scores of the pairs (queries[i], documents[i]), computed as those that `find` gives: [n]."""
        out = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), 8_192):
            part = slice(start, start + 8_192)
            asked = self._vectors.read(self._hashes[queries[part]])
            out[part] = pair_scores(asked, self._vectors.read(self._documents.hashes[documents[part]]))
        return out


class _Documents:
    """The corpus as blocks of vectors; begins anew each time it is iterated. Holds ids and hashes, no texts."""

    def __init__(self, corpus: Path, doc_ids: pl.Series, vectors: Vectors, block: int) -> None:
        self._doc_ids, self._vectors, self._block = doc_ids, vectors, block
        hashes = [np.empty((0, 16), np.uint8)]
        with pq.ParquetFile(corpus) as file:
            for batch in file.iter_batches(8_192, columns=["text", "title"]):
                hashes.append(vectors.document_hashes(pl.DataFrame(pl.from_arrow(batch))))
        self.hashes: Hashes = np.concatenate(hashes)

    def __iter__(self) -> Iterator[Floats]:
        for start in range(0, len(self.hashes), self._block):
            part = slice(start, start + self._block)
            block = self._vectors.read(self.hashes[part])
            _require_finite(block, self._doc_ids[part], "document")
            yield block


def _require_finite(vectors: Floats, ids: pl.Series, kind: str) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"the vector of {kind} {ids[int(np.argmax(bad))]!r} is not finite. "
            f'Encode with dtype = "float32", or look at the text of that {kind}.'
        )
