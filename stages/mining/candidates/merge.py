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
    """CANDIDATES of several sources as one row for each pair.

    The source of a pair is the names of its sources, joined by "+" in their order. Its rank is the one of the first
    encoder, or the best of the others if the first encoder did not find it. Its score is the one of the first encoder,
    which all rules measure by; `score_pairs` computes it for pairs (query_id, doc_id) that this encoder did not find.
    """
    if candidates["source"].is_in([DENSE_SOURCE]).all():
        return candidates
    is_dense = pl.col("source") == DENSE_SOURCE
    rows = candidates.group_by(PAIR_COLUMNS, maintain_order=True).agg(
        source=pl.col("source").str.join("+"),
        rank=pl.coalesce(pl.col("rank").filter(is_dense).first(), pl.col("rank").min()),
        score=pl.col("score").filter(is_dense).first(),
    )
    unscored = rows.filter(pl.col("score").is_null()).select(PAIR_COLUMNS)
    computed = unscored.with_columns(computed=pl.Series(score_pairs(unscored), dtype=pl.Float32))
    rows = rows.join(computed, on=PAIR_COLUMNS, how="left", maintain_order="left")
    return rows.with_columns(score=pl.coalesce("score", "computed")).drop("computed")


def make_dense_scorer(
    queries: pl.DataFrame, vectors: "VectorLookup", vectorise: DocumentVectoriser
) -> Callable[[pl.DataFrame], Floats]:
    """A function from pairs (query_id, doc_id) to their scores [n] by the first encoder, equal to those of search.

    `queries` are the rows of queries.parquet, in its order.
    """
    query_numbers = queries.select("query_id").with_row_index("number")

    def score_pairs(pairs: pl.DataFrame) -> Floats:
        if pairs.is_empty():
            return np.empty(0, np.float32)
        numbers = pairs.join(query_numbers, on="query_id", how="left", maintain_order="left")["number"].to_numpy()
        return pair_scores(vectors.read_queries(numbers), vectorise(pairs))

    return score_pairs
