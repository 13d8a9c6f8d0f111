"""What the features of a candidate need of the whole collection."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.arrays import Floats, Ints, l2_normalise
from stages.core.hashing import sample_by_hash
from stages.embedding.lookup import VectorLookup
from stages.mining.candidates.document_score_stats import DocumentScoreStats
from stages.mining.candidates.documents import DocumentVectoriser, find_id_rows, iter_document_texts
from stages.retrieval.bm25 import Bm25

N_PROBE_QUERIES = 256
"""Queries, sampled by hash, whose scores give each document's mean and standard deviation."""
N_SCALER_DOCUMENTS = 1_024
"""Documents, sampled by hash, whose pairs give the mean and standard deviation of random cosines."""
MAX_POSITIVE_QUERIES = 32
"""For each document so many of the queries that it is a positive of are compared."""
_MIN_STD = 1e-6


@dataclass(frozen=True)
class ZScaler:
    """Mean and standard deviation of the cosines of random pairs."""

    mean: float
    std: float

    @classmethod
    def fit(cls, vectors: Floats) -> "ZScaler":
        """The scaler of all pairs of some random vectors [n, d]; 0 and 1 for fewer than three vectors."""
        if len(vectors) < 3:
            return cls(0.0, 1.0)
        unit = l2_normalise(vectors).astype(np.float64)
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        return cls(float(cosines.mean()), max(float(cosines.std()), _MIN_STD))

    def __call__(self, cosines: Floats) -> Floats:
        """Cosines as z-scores: in standard deviations from the mean."""
        return ((cosines - self.mean) / self.std).astype(np.float32)


class PositiveQueries(NamedTuple):
    """The queries that each document is a positive of, concatenated in the order of the documents."""

    offsets: Ints
    """[n_documents + 1]: the start of each document's queries, and the end."""
    queries: Ints
    """Query numbers."""

    @classmethod
    def from_pairs(cls, document: Ints, query: Ints, n_documents: int) -> Self:
        """From pairs [n] of document and query numbers, sorted by document."""
        return cls(np.searchsorted(document, np.arange(n_documents + 1)), query)


@dataclass(frozen=True)
class FeatureContext:
    """What the features need of the whole collection."""

    query_numbers: pl.DataFrame
    """query_id and query_number, which `read_query_vectors`, `bm25` and `positive_queries` use."""
    doc_ids: pl.Series
    """The ids of all documents, sorted. A document's position is its number for `bm25` and `positive_queries`."""
    read_query_vectors: Callable[[Ints], Floats]
    """Query vectors [n, d] of query numbers [n]."""
    bm25: Bm25
    positive_queries: PositiveQueries
    document_score_stats: DocumentScoreStats
    document_scaler: ZScaler
    """Of cosines between documents."""
    query_scaler: ZScaler
    """Of cosines between queries."""


def build_feature_context(
    corpus: Path, queries: pl.DataFrame, vectors: VectorLookup, vectorise: DocumentVectoriser, positives: pl.DataFrame
) -> FeatureContext:
    """The context of a collection.

    `queries`: query_id, query of the rows of queries.parquet, in its order; `positives`: query_id, doc_id of those for
    `positive_queries`.
    """
    query_numbers = queries.select("query_id").with_row_index("query_number").select("query_id", "query_number")
    query_numbers = query_numbers.with_columns(pl.col("query_number").cast(pl.Int64))
    doc_ids = schemas.read_table(corpus, schemas.CORPUS, ["doc_id"])["doc_id"]
    positive_queries = (
        positives.join(query_numbers, on="query_id")
        .sort("doc_id", "query_id")
        .group_by("doc_id", maintain_order=True)
        .head(MAX_POSITIVE_QUERIES)
    )
    number_by_id = dict(query_numbers.iter_rows())
    probe_ids = sample_by_hash(number_by_id, N_PROBE_QUERIES, "probe")
    probe_vectors = vectors.read_queries(np.array([number_by_id[query_id] for query_id in probe_ids], np.int64))
    sampled_doc_ids = pl.Series("doc_id", sample_by_hash(doc_ids, N_SCALER_DOCUMENTS, "pair"), dtype=pl.String)
    return FeatureContext(
        query_numbers,
        doc_ids,
        vectors.read_queries,
        Bm25(queries["query"].to_list(), (text for _, texts in iter_document_texts(corpus) for text in texts)),
        PositiveQueries.from_pairs(
            find_id_rows(positive_queries["doc_id"], doc_ids), positive_queries["query_number"].to_numpy(), len(doc_ids)
        ),
        DocumentScoreStats(len(doc_ids), probe_vectors),
        ZScaler.fit(vectorise(sampled_doc_ids.to_frame())),
        ZScaler.fit(probe_vectors),
    )
