"""Fuses the scores of a system and the embedder: a weighted sum of z-scores; the weight is chosen on dev."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.evaluation.metrics import Evaluator, average_metrics

WEIGHT_GRID = tuple(round(0.05 * step, 2) for step in range(21))
DEFAULT_FUSION_WEIGHT = 0.5
_SELECTION_METRICS = ("nDCG@10", "MRR@10")


def compute_z_scores(scores: NDArray[np.floating], list_index: NDArray[np.integer]) -> NDArray[np.float64]:
    """Each score less the mean of its list, divided by the list's standard deviation; 0 if the list's scores are equal.

    `list_index[i]` is the list of `scores[i]`; the scores of a list are adjacent. Z-scores make the units of two
    systems comparable (Renda and Straccia 2003, "Web metasearch: rank vs. score based rank aggregation methods").
    """
    if not len(scores):
        return np.zeros(0)
    values = scores.astype(np.float64)
    starts = np.flatnonzero(np.diff(list_index, prepend=list_index[0] - 1))
    counts = np.diff(starts, append=len(values))
    centred = values - np.repeat(np.add.reduceat(values, starts) / counts, counts)
    deviation = np.sqrt(np.add.reduceat(centred**2, starts) / counts)
    is_constant = np.maximum.reduceat(values, starts) == np.minimum.reduceat(values, starts)
    return np.where(
        np.repeat(is_constant, counts), 0.0, centred / np.repeat(np.where(is_constant, 1.0, deviation), counts)
    )


def fuse_scores(candidates: pl.DataFrame, weight: float, system: str = "reranker") -> pl.Series:
    """`weight` x the z-score of `system` + (1 - `weight`) x the embedder's.

    `candidates` holds list, query_id, embedder and `system`; the rows of one query's list are adjacent.
    """
    list_index = candidates.select(pl.struct("list", "query_id").rle_id().cast(pl.Int64)).to_series().to_numpy()
    ours, embedder = (compute_z_scores(candidates[row].to_numpy(), list_index) for row in (system, "embedder"))
    return pl.Series(weight * ours + (1 - weight) * embedder)


def select_fusion_weight(
    candidates: pl.DataFrame, qrels: pl.DataFrame, system: str = "reranker"
) -> tuple[float, str | None]:
    """The weight of `WEIGHT_GRID` with the best nDCG@10 on the lists of dev, then the best MRR@10; and "dev".

    Of equal weights the smallest, which changes the retriever's order least. `DEFAULT_FUSION_WEIGHT` and None if
    `candidates` is empty.
    """
    if candidates.is_empty():
        return DEFAULT_FUSION_WEIGHT, None
    evaluator = Evaluator(qrels.join(candidates, on="query_id", how="semi"), _SELECTION_METRICS)
    metrics_by_weight = {
        weight: average_metrics(
            evaluator.evaluate(candidates.with_columns(score=fuse_scores(candidates, weight, system)))
        )
        for weight in WEIGHT_GRID
    }
    return min(
        WEIGHT_GRID,
        key=lambda weight: (*(-round(metrics_by_weight[weight][name], 9) for name in _SELECTION_METRICS), weight),
    ), "dev"
