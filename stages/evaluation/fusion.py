"""The reranker's and the embedder's scores made one: z-scores within a list, weighted; the weight is chosen on dev."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.evaluation.metrics import Judge, means

GRID = tuple(round(0.05 * step, 2) for step in range(21))
DEFAULT_WEIGHT = 0.5
_MEASURES = ("nDCG@10", "MRR@10")


def z_scores(scores: NDArray[np.floating], code: NDArray[np.integer]) -> NDArray[np.float64]:
    """Each score less the mean of its list, over the list's standard deviation; 0 where all in the list are equal.

    `code[i]` is the list of `scores[i]`; the scores of a list stand together. Z-scores make the units of two systems
    comparable (Renda and Straccia 2003, "Web metasearch: rank vs. score based rank aggregation methods").
    """
    if not len(scores):
        return np.zeros(0)
    values = scores.astype(np.float64)
    starts = np.flatnonzero(np.diff(code, prepend=code[0] - 1))
    counts = np.diff(starts, append=len(values))
    centred = values - np.repeat(np.add.reduceat(values, starts) / counts, counts)
    deviation = np.sqrt(np.add.reduceat(centred**2, starts) / counts)
    level = np.maximum.reduceat(values, starts) == np.minimum.reduceat(values, starts)
    return np.where(np.repeat(level, counts), 0.0, centred / np.repeat(np.where(level, 1.0, deviation), counts))


def fuse(table: pl.DataFrame, weight: float) -> pl.Series:
    """`weight` of the reranker's z-score and the rest of the embedder's: 0 is the embedder, 1 the reranker.

    `table` holds list, query_id, reranker, embedder; the rows of one query's list stand together.
    """
    code = table.select(pl.struct("list", "query_id").rle_id().cast(pl.Int64)).to_series().to_numpy()
    reranker, embedder = (z_scores(table[row].to_numpy(), code) for row in ("reranker", "embedder"))
    return pl.Series(weight * reranker + (1 - weight) * embedder)


def choose_weight(table: pl.DataFrame, qrels: pl.DataFrame) -> tuple[float, str | None]:
    """The weight of GRID that ranks dev's lists best by nDCG@10, then MRR@10, and "dev".

    Of equals it is the smallest, which changes the retriever's order least. (0.5, None) where `table` is empty.
    """
    if table.is_empty():
        return DEFAULT_WEIGHT, None
    judge = Judge(qrels.join(table, on="query_id", how="semi"), _MEASURES)
    found = {weight: means(judge(table.with_columns(score=fuse(table, weight)))) for weight in GRID}
    return min(GRID, key=lambda weight: (*(-round(found[weight][name], 9) for name in _MEASURES), weight)), "dev"
