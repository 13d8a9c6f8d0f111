"""The fixed rules of the literature: the highest retriever score with which a candidate may still be a negative.

Each rule has the name and the meaning of its source. A candidate passes if its score is at most the threshold of its
query, as the sources remove what is strictly above. The rule `window` looks at the rank instead.

NV-Retriever is Moreira et al., "NV-Retriever: Improving text embedding models with effective hard-negative mining",
arXiv 2407.15831. If a query has several positives, sentence-transformers (`mine_hard_negatives`) and NeMo Automodel
(`mine_hard_negatives.py`) both measure from the positive with the lowest score. The rules that end in `_max` measure
from the positive with the highest score.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.arrays import Bools, Floats
from stages.mining.candidates.known_positives import compute_positive_score_range

RuleName = Literal["perc", "perc_max", "margin", "margin_max", "abs", "window", "infonce", "none", "learned"]


@dataclass(frozen=True)
class ThresholdRule:
    """A rule: what it measures from, the value that its source recommends, and its description for a person."""

    reference_positive: Literal["lowest", "best"] | None
    """The positive that the threshold is measured from; None: the rule needs no positive."""
    default_threshold: float | None
    """The source's value of `threshold`; None: the rule has no threshold."""
    description: str
    """What the rule accepts, with {t} for the threshold, {first} and {last} for the ranks of the window."""
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
    "none": ThresholdRule(None, None, "everything that is not a known positive", "naive top-k"),
    "learned": ThresholdRule(
        "lowest", None, "candidates that are unlikely enough to be false negatives for their score", "prep"
    ),
}


def describe_rule(name: RuleName, threshold: float | None, window: tuple[int, int]) -> str:
    """What a rule accepts, for a person. `window` is that of `passes_rule`."""
    return THRESHOLD_RULES[name].description.format(t=threshold, first=window[0] + 1, last=window[1])


def compute_thresholds(
    name: RuleName, threshold: float | None, positive_score_min: Floats, positive_score_max: Floats
) -> Floats:
    """The highest score of each query that may still be a negative: float32 [n].

    `positive_score_min` and `positive_score_max` [n] are the scores of each query's lowest and best positive, NaN if it
    has none. The result is NaN for a query without a positive if the rule needs one, and for all queries if the rule
    has no threshold. `perc` subtracts a share of the positive's magnitude, p - |p| (1 - threshold), as
    sentence-transformers does since its issue 3819, because 0.95 p would lie above a negative p. NeMo and the paper
    multiply; for p > 0 the two are the same.
    """
    from_best = THRESHOLD_RULES[name].reference_positive == "best"
    reference_score = (positive_score_max if from_best else positive_score_min).astype(np.float64)
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
    """Whether each candidate may be a negative: bool [n]; all arrays are [n].

    `max_score` is the result of `compute_thresholds` for the candidate's query. `window` is (skipped, last): ranks from
    skipped + 1 to last pass. Ranks count from 1 and include the positives, as in FlagEmbedding, which slices its search
    result [skipped:last] before it removes the positives. `learned` passes every candidate here, because it does not
    depend on a single candidate's score (`stages.mining.risk_budget`).
    """
    if name in ("none", "learned"):
        return np.ones(len(score), dtype=np.bool_)
    if name == "window":
        return (rank > window[0]) & (rank <= window[1])
    return score <= max_score


def apply_rule(
    name: RuleName, threshold: float | None, window: tuple[int, int], rows: pl.DataFrame, qrels_scored: pl.DataFrame
) -> pl.DataFrame:
    """`rows` (query_id, rank, score, ..., sorted by query) with the columns threshold, no_positive and rule.

    `threshold` is the result of `compute_thresholds`, null if there is none. `no_positive` marks the rows of queries
    without the positive that the rule needs. `rule` marks the rows that the rule excludes. `qrels_scored` (query_id,
    relevance, score) holds the scores of the positives.
    """
    score_range = compute_positive_score_range(qrels_scored.filter(pl.col("relevance") > 0))
    segments = rows["query_id"].rle()  # one lookup for each query instead of one for each row
    query_ids = pl.DataFrame({"query_id": segments.struct.field("value")})
    score_range = query_ids.join(score_range, on="query_id", how="left", maintain_order="left")
    segment_sizes = segments.struct.field("len").to_numpy()
    positive_score_min, positive_score_max = (
        np.repeat(score_range[column].cast(pl.Float32).fill_null(float("nan")).to_numpy(), segment_sizes)
        for column in ("positive_score_min", "positive_score_max")
    )
    max_score = compute_thresholds(name, threshold, positive_score_min, positive_score_max)
    passed = passes_rule(name, rows["score"].to_numpy(), rows["rank"].to_numpy(), max_score, window)
    needs_positive = THRESHOLD_RULES[name].reference_positive is not None
    return rows.with_columns(
        pl.Series("threshold", max_score).fill_nan(None),
        pl.Series("no_positive", np.isnan(positive_score_min) & needs_positive),
        pl.Series("rule", ~passed),
    )


def _require_threshold(value: float | None) -> float:
    if value is None:
        raise ValueError("this rule needs a threshold")
    return value
