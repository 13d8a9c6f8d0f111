"""Dense retrieval: the best documents of a query by the vectors of one encoder."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.core.executor import Engine
from stages.core.schemas import CORPUS, read_table
from stages.embedding.lookup import Vectors
from stages.embedding.vector_store import Floats, Hashes
from stages.retrieval.exact.scoring import pair_scores
from stages.retrieval.exact.search import best_above, best_of, each_top_k
from stages.retrieval.results import Ids

_LARGEST = 1e17
"""Of a vector's figures. Sums of products of larger ones may lie beyond float32, where nothing can be ranked."""


class Dense:
    """The queries (query_id, query) and documents of the tables, in their order, by the vectors of one encoder.

    `block` documents are held in memory at once, and are an item of work of `engine`, which multiplies them on `device`
    in `dtype`. Whatever meets a vector that is not finite, or far too large, raises `InputError`.
    """

    def __init__(
        self,
        queries: pl.DataFrame,
        corpus: Path,
        vectors: Vectors,
        block: int,
        engine: Engine | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.doc_ids = read_table(corpus, CORPUS, ["doc_id"])["doc_id"].rechunk()
        self.vectors = vectors
        self.query_hashes = vectors.query_hashes(queries)
        self.document_hashes = _document_hashes(corpus, vectors)
        self.query_ids, self.block = queries["query_id"], block
        self._engine, self._device, self._dtype = engine, device, dtype

    def best(self, parts: Iterable[Ids], k: int) -> Iterator[tuple[Ids, Floats]]:
        """Of each part the k best documents of each query, all where there are fewer: places and scores, [q, k]."""
        asked, k = map(self.asked, parts), min(k, len(self.doc_ids))
        return each_top_k(asked, self._corpus, k, engine=self._engine, device=self._device, dtype=self._dtype)

    def best_of(self, queries: Ids, documents: Ids, k: int) -> tuple[Ids, Floats]:
        """Of each query the k best of some documents [q, n], scored and ordered as by `best`: [q, k].

        -1 stands for no document; it comes last, with the score -inf.
        """
        return best_of(self.asked(queries), self._corpus, documents, k)

    def above(self, queries: Ids, documents: Ids, k: int, least: Floats) -> tuple[Ids, Ids, Floats]:
        """Of each query the k best of some documents (places that rise) with a score of at least its `least` [q].

        Flat, by query and best first: the place of the query in `queries`, that of the document in the corpus, the
        score.
        """
        row, found, scores = best_above(self.asked(queries), _Blocks(self, documents), k, least)
        return row, documents[found], scores

    def scores(self, queries: Ids, documents: Ids) -> Floats:
        """The scores of the pairs (queries[i], documents[i]), computed as those that `best` gives: [n]."""
        out = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), 8_192):
            part = slice(start, start + 8_192)
            asked = self.vectors.read(self.query_hashes[queries[part]])
            out[part] = pair_scores(asked, self.vectors.read(self.document_hashes[documents[part]]))
        return out

    @property
    def _corpus(self) -> "_Blocks":
        return _Blocks(self, np.arange(len(self.doc_ids)))

    def asked(self, queries: Ids) -> Floats:
        """The vectors of some queries."""
        vectors = self.vectors.read(self.query_hashes[queries])
        _require_usable(vectors, self.query_ids.gather(queries), "query")
        return vectors

    def read(self, documents: Ids) -> Iterator[Floats]:
        """The vectors of some documents, a block at a time; none is held on to."""
        parts = (documents[start : start + self.block] for start in range(0, len(documents), self.block))
        return map(self._block, parts)

    def _block(self, documents: Ids) -> Floats:
        vectors = self.vectors.read(self.document_hashes[documents])
        _require_usable(vectors, self.doc_ids.gather(documents), "document")
        return vectors


class _Blocks:
    """Documents as blocks of vectors; begins anew each time it is iterated."""

    def __init__(self, dense: Dense, documents: Ids) -> None:
        self._dense, self._documents = dense, documents

    def __len__(self) -> int:
        return -(-len(self._documents) // self._dense.block)

    def __iter__(self) -> Iterator[Floats]:
        return self._dense.read(self._documents)


def _document_hashes(corpus: Path, vectors: Vectors) -> Hashes:
    hashes = [np.empty((0, 16), np.uint8)]
    with pq.ParquetFile(corpus) as file:
        for batch in file.iter_batches(8_192, columns=["text", "title"]):
            hashes.append(vectors.document_hashes(pl.DataFrame(pl.from_arrow(batch))))
    return np.concatenate(hashes)


def _require_usable(vectors: Floats, ids: pl.Series, kind: str) -> None:
    usable = ((vectors < _LARGEST) & (vectors > -_LARGEST)).all(axis=1)
    if not usable.all():
        place = int(np.argmin(usable))
        found = "is not finite" if not np.isfinite(vectors[place]).all() else f"holds figures beyond {_LARGEST:g}"
        raise InputError(
            f"the vector of {kind} {ids[place]!r} {found}. "
            f'Encode with dtype = "float32", or look at the text of that {kind}.'
        )
