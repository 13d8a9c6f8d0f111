"""Dense retrieval: the best documents of a query by the vectors of one encoder."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from stages.core.arrays import Floats, Ints
from stages.core.errors import InputError
from stages.core.executor import Executor
from stages.core.schemas import CORPUS, read_table
from stages.embedding.lookup import VectorLookup
from stages.retrieval.exact.scoring import pair_scores
from stages.retrieval.exact.search import exact_search_batches, search_above, search_among

_MAX_VECTOR_VALUE = 1e17
"""The largest component of a vector. Inner products of larger ones can overflow float32."""


class DenseRetriever:
    """Search with the vectors of one encoder for the queries and documents of the tables, in their order.

    `block_size` documents are held in memory at once. They are an item of work of `executor`, which multiplies them on
    `device` in `dtype`. All methods raise `InputError` for a vector that is not finite or has components over 1e17.
    """

    def __init__(
        self,
        queries: pl.DataFrame,
        corpus: Path,
        vectors: VectorLookup,
        block_size: int,
        executor: Executor | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.doc_ids = read_table(corpus, CORPUS, ["doc_id"])["doc_id"].rechunk()
        self.vectors = vectors
        self.query_ids, self.block_size = queries["query_id"], block_size
        self._executor, self._device, self._dtype = executor, device, dtype

    def search_batches(self, query_batches: Iterable[Ints], k: int) -> Iterator[tuple[Ints, Floats]]:
        """For each batch the k best documents of each query (all if there are fewer): positions and scores, [q, k]."""
        query_vectors, k = map(self.read_queries, query_batches), min(k, len(self.doc_ids))
        return exact_search_batches(
            query_vectors, self._corpus, k, executor=self._executor, device=self._device, dtype=self._dtype
        )

    def search_among(self, queries: Ints, documents: Ints, k: int) -> tuple[Ints, Floats]:
        """The k best of `documents` [q, n] for each query, scored and ordered as by `search_batches`: [q, k].

        -1 means no document; it is ranked last, with the score -inf.
        """
        return search_among(self.read_queries(queries), self._corpus, documents, k)

    def search_above(self, queries: Ints, documents: Ints, k: int, min_scores: Floats) -> tuple[Ints, Ints, Floats]:
        """The k best of `documents` (ascending positions) for each query, with scores of at least `min_scores` [q].

        Flat arrays by query, best first: the position in `queries`, the position in the corpus, the score.
        """
        row, document_rows, scores = search_above(
            self.read_queries(queries), _DocumentBlocks(self, documents), k, min_scores
        )
        return row, documents[document_rows], scores

    def score_pairs(self, queries: Ints, documents: Ints) -> Floats:
        """The scores of the pairs (queries[i], documents[i]), equal to those of `search_batches`: [n]."""
        out = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), 8_192):
            part = slice(start, start + 8_192)
            out[part] = pair_scores(
                self.vectors.read_queries(queries[part]), self.vectors.read_documents(documents[part])
            )
        return out

    @property
    def _corpus(self) -> "_DocumentBlocks":
        return _DocumentBlocks(self, np.arange(len(self.doc_ids)))

    def read_queries(self, queries: Ints) -> Floats:
        """The vectors of some queries."""
        vectors = self.vectors.read_queries(queries)
        _check_vectors(vectors, self.query_ids.gather(queries), "query")
        return vectors

    def read_document_blocks(self, documents: Ints) -> Iterator[Floats]:
        """The vectors of some documents, block by block; none is kept."""
        parts = (documents[start : start + self.block_size] for start in range(0, len(documents), self.block_size))
        return map(self._read_block, parts)

    def _read_block(self, documents: Ints) -> Floats:
        vectors = self.vectors.read_documents(documents)
        _check_vectors(vectors, self.doc_ids.gather(documents), "document")
        return vectors


class _DocumentBlocks:
    """Documents as blocks of vectors; each iteration starts at the first block."""

    def __init__(self, dense: DenseRetriever, documents: Ints) -> None:
        self._dense, self._documents = dense, documents

    def __len__(self) -> int:
        return -(-len(self._documents) // self._dense.block_size)

    def __iter__(self) -> Iterator[Floats]:
        return self._dense.read_document_blocks(self._documents)


def _check_vectors(vectors: Floats, ids: pl.Series, kind: str) -> None:
    is_usable = ((vectors < _MAX_VECTOR_VALUE) & (vectors > -_MAX_VECTOR_VALUE)).all(axis=1)
    if not is_usable.all():
        position = int(np.argmin(is_usable))
        is_finite = np.isfinite(vectors[position]).all()
        problem = f"has components over {_MAX_VECTOR_VALUE:g}" if is_finite else "is not finite"
        raise InputError(
            f"the vector of {kind} {ids[position]!r} {problem}. "
            f'Encode with dtype = "float32", or look at the text of that {kind}.'
        )
