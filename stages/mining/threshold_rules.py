"""The fixed rules of the literature: up to which retriever score a candidate may count as a negative.

Each rule bears the name and keeps the meaning of its source. A candidate passes when its score is at most the query's
threshold (the sources remove what is strictly above); `window` looks at the rank instead.

NV-Retriever is Moreira et al., "NV-Retriever: Improving text embedding models with effective hard-negative mining",
arXiv 2407.15831. Where a query has several positives, sentence-transformers (`mine_hard_negatives`) and NeMo Automodel
(`mine_hard_negatives.py`) both measure from the lowest-scored one; the rules ending in `_max` measure from the best.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.arrays import Bools, Floats

RuleName = Literal["perc", "perc_max", "margin", "margin_max", "abs", "window", "infonce", "none", "learned"]


@dataclass(frozen=True)
class ThresholdRule:
    """What a rule measures from, the value its source recommends, and its words for a person."""

    reference_positive: Literal["lowest", "best"] | None
    """The positive that the threshold is measured from; None: the rule needs no positive."""
    default_threshold: float | None
    """The source's value of `threshold`; None: the rule has no threshold."""
    description: str
    source: str


THRESHOLD_RULES: dict[RuleName, ThresholdRule] = {
    "perc": ThresholdRule(
        "lowest", 0.95, "at most {t} of the lowest positive's score", "NV-Retriever TopK-PercPos; NeMo perc"
    ),
    "perc_max": ThresholdRule(
        "best", 0.95, "at most {t} of the best positive's score", "TopK-PercPos on the best positive"
    ),
    "margin": ThresholdRule(
        "lowest", 0.05, "at least {t} below the lowest positive", "NV-Retriever TopK-MarginPos; NeMo abs"
    ),
    "margin_max": ThresholdRule(
        "best", 0.05, "at least {t} below the best positive", "TopK-MarginPos on the best positive"
    ),
    "abs": ThresholdRule(None, 0.7, "a score of at most {t}", "NV-Retriever TopK-Abs; sentence-transformers max_score"),
    "window": ThresholdRule(
        None, None, "the ranks from {first} to {last}", "FlagEmbedding hn_mine range_for_sampling 10-210"
    ),
    "infonce": ThresholdRule(
        "lowest", 0.1, "at most {t} above the lowest positive", "SWIFT INFONCE_MASK_FAKE_NEGATIVE"
    ),
    "none": ThresholdRule(None, None, "everything that is not known to be positive", "naive top-k"),
    "learned": ThresholdRule(
        "lowest", None, "what is unlikely enough to be a false negative for how hard it is", "prep"
    ),
}


def describe_rule(name: RuleName, threshold: float | None, window: tuple[int, int]) -> str:
    """What a rule accepts, for a person; `window` as `passes_rule` takes it."""
    return THRESHOLD_RULES[name].description.format(t=threshold, first=window[0] + 1, last=window[1])


def compute_thresholds(name: RuleName, threshold: float | None, lowest: Floats, best: Floats) -> Floats:
    """The highest score that may still be a negative, per query: float32 [n].

    `lowest` and `best` [n] are the scores of each query's lowest and best positive, NaN where it has none;
    the result is NaN there too if the rule needs a positive, and NaN everywhere for those that have no number. For
    `perc` the distance is taken from the positive's magnitude, p - |p| (1 - value), as sentence-transformers does since
    its issue 3819: 0.95 p would lie *above* a negative p. NeMo and the paper multiply; above zero the two are the same.
    """
    reference_score = (best if THRESHOLD_RULES[name].reference_positive == "best" else lowest).astype(np.float64)
    if name in ("perc", "perc_max"):
        limit = reference_score - np.abs(reference_score) * (1.0 - _require_threshold(threshold))
    elif name in ("margin", "margin_max"):
        limit = reference_score - _require_threshold(threshold)
    elif name == "infonce":
        limit = reference_score + _require_threshold(threshold)
    elif name == "abs":
        limit = np.full(len(reference_score), _require_threshold(threshold))
    else:
        limit = np.full(len(reference_score), np.nan)
    return limit.astype(np.float32)


def passes_rule(
    name: RuleName, score: Floats, rank: NDArray[np.int32], max_score: Floats, window: tuple[int, int]
) -> Bools:
    """Whether each candidate may be a negative: bool [n]; all arguments but `window` are [n], aligned.

    `window` is (skipped, last): ranks skipped + 1 to last pass, ranks counted from 1 with the positives among
    them. That is FlagEmbedding's slice [skipped:last] of its search result, before it takes the positives out.
    `learned` looks at no single figure: `stages.mining.estimator.table_estimator` decides.
    """
    if name in ("none", "learned"):
        return np.ones(len(score), dtype=np.bool_)
    if name == "window":
        return (rank > window[0]) & (rank <= window[1])
    return score <= max_score


def apply_rule(
    name: RuleName, threshold: float | None, window: tuple[int, int], rows: pl.DataFrame, qrels_scored: pl.DataFrame
) -> pl.DataFrame:
    """`rows` (query_id, rank, score, ...) with threshold (null where there is none), no_positive and rule.

    `rule` marks what the rule sets aside, `no_positive` the rows of queries that lack the positive the rule measures
    from; `qrels_scored` (query_id, relevance, score) holds the positives' scores.
    """
    positives = qrels_scored.filter(pl.col("relevance") > 0)
    positive_scores = positives.group_by("query_id").agg(
        positive_score_min=pl.col("score").min(), positive_score_max=pl.col("score").max()
    )
    runs = rows["query_id"].rle()  # rows come by query: what is the same for all of one is looked up once
    query_ids = pl.DataFrame({"query_id": runs.struct.field("value")})
    score_range = query_ids.join(positive_scores, on="query_id", how="left", maintain_order="left")
    run_lengths = runs.struct.field("len").to_numpy()
    lowest, best = (
        np.repeat(score_range[end].cast(pl.Float32).fill_null(float("nan")).to_numpy(), run_lengths)
        for end in ("positive_score_min", "positive_score_max")
    )
    max_score = compute_thresholds(name, threshold, lowest, best)
    passed = passes_rule(name, rows["score"].to_numpy(), rows["rank"].to_numpy(), max_score, window)
    return rows.with_columns(
        pl.Series("threshold", max_score).fill_nan(None),
        pl.Series("no_positive", np.isnan(lowest) & (THRESHOLD_RULES[name].reference_positive is not None)),
        pl.Series("rule", ~passed),
    )


def _require_threshold(value: float | None) -> float:
    if value is None:
        raise ValueError("this rule needs a threshold")
    return value
