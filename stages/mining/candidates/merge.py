"""One row for a pair that several retrievers found."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from stages.core.arrays import Floats
from stages.core.schemas import DENSE_SOURCE, PAIR_COLUMNS
from stages.mining.candidates.documents import DocumentVectoriser
from stages.retrieval.exact.scoring import pair_scores

if TYPE_CHECKING:
    from stages.embedding.lookup import VectorLookup


def merge_sources(candidates: pl.DataFrame, score_pairs: Callable[[pl.DataFrame], Floats]) -> pl.DataFrame:
    """One row a pair of CANDIDATES that several sources may have found.

    Its source is their names joined by "+", in their order; its rank that of the first encoder, or else the best of
    another; its score that of the first encoder, by which the rules measure: `score_pairs` gives it for pairs
    (query_id, doc_id) that this one did not find.
    """
    if candidates["source"].is_in([DENSE_SOURCE]).all():
        return candidates
    first = pl.col("source") == DENSE_SOURCE
    rows = candidates.group_by("query_id", "doc_id", maintain_order=True).agg(
        source=pl.col("source").str.join("+"),
        rank=pl.coalesce(pl.col("rank").filter(first).first(), pl.col("rank").min()),
        score=pl.col("score").filter(first).first(),
    )
    unscored = rows.filter(pl.col("score").is_null()).select("query_id", "doc_id")
    measured = unscored.with_columns(measured=pl.Series(score_pairs(unscored), dtype=pl.Float32))
    rows = rows.join(measured, on=PAIR_COLUMNS, how="left", maintain_order="left")
    return rows.with_columns(score=pl.coalesce("score", "measured")).drop("measured")


def make_dense_scorer(
    queries: pl.DataFrame, vectors: "VectorLookup", vectorise: DocumentVectoriser
) -> Callable[[pl.DataFrame], Floats]:
    """A function from pairs (query_id, doc_id) to their scores by the first encoder [n], as search computes them."""
    hashes = vectors.hash_queries(queries)
    places = queries.select("query_id").with_row_index("place")

    def score_pairs(pairs: pl.DataFrame) -> Floats:
        if pairs.is_empty():
            return np.empty(0, np.float32)
        asked = pairs.join(places, on="query_id", how="left", maintain_order="left")["place"].to_numpy()
        return pair_scores(vectors.read(hashes[asked]), vectorise(pairs))

    return score_pairs
