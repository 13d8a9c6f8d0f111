"""Whether a reranker gives all documents the same score, and so can't rank."""

from collections.abc import Sequence

import polars as pl

MIN_SCORE_RANGE = 1e-4
"""Logits of a query's candidates that lie closer together than this count as the same."""
MAX_TIED_SHARE = 0.95
"""The largest share of neighbours in the rankings that may have equal scores."""


def compute_max_score_range(scores: pl.DataFrame, keys: Sequence[str]) -> float:
    """The widest range of the column `score` within a list of candidates, which `keys` name; 0 if it is not finite."""
    ranges = scores.group_by(keys).agg(range=pl.col("score").max() - pl.col("score").min())["range"]
    return float(ranges.fill_nan(0.0).max() or 0.0)  # type: ignore[arg-type]


def detect_score_collapse(scores: pl.DataFrame, keys: Sequence[str]) -> str | None:
    """Why the column `score` can't rank the lists of candidates that `keys` name; None if it can.

    Collapsed means: a score is not finite, no list's scores lie `MIN_SCORE_RANGE` apart, or more than `MAX_TIED_SHARE`
    of the neighbours in the rankings are tied. Lists of one document say nothing.
    """
    score = pl.col("score").cast(pl.Float64)
    scores = scores.select(*keys, score).filter(pl.len().over(keys) > 1).sort(*keys, "score")
    if scores.is_empty():
        return None
    if not scores["score"].is_finite().all():
        return "the reranker's scores are not all finite numbers: its training diverged"
    if compute_max_score_range(scores, keys) < MIN_SCORE_RANGE:
        return "the reranker gives all documents of a list the same score"
    tied_share = (scores.select(pl.col("score").diff().over(keys)).drop_nulls().to_numpy() == 0).mean()
    if tied_share > MAX_TIED_SHARE:
        return f"{tied_share:.1%} of neighbours in the reranker's rankings have the same score"
    return None
