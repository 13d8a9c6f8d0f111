"""Validate a mask on held-out positives: false negatives whose label is known."""

from typing import Any

import numpy as np
import polars as pl

from stages.core.context import Summary
from stages.mining import risk_budget, threshold_rules
from stages.mining.estimator.pu_learning import MISSING_PER_KNOWN_POSITIVE, pu_weight
from stages.mining.params import Params
from stages.mining.risk_budget import RiskSolution
from stages.statistics.bootstrap import resample_sums

HOLDOUT_BOOTSTRAP_SAMPLES = 500


def validate_on_holdout(
    params: Params, solution: RiskSolution | None, holdout_candidates: pl.DataFrame
) -> Summary | None:
    """The expected and the observed share of false negatives among the negatives that the mask selects.

    `holdout_candidates` (HOLDOUT_CANDIDATES) have a cross-validated p. low and high are the 95 % interval of the
    observed share, by a bootstrap over queries. A selected held-out positive stands for unlabelled positives:
    `MISSING_PER_KNOWN_POSITIVE` for each known one. Both shares are relative to the other selected candidates, weighted
    by `pu_weight`. The result is None if there is no held-out positive.
    """
    if holdout_candidates.is_empty():
        return None
    rows = holdout_candidates
    if solution is None:
        score, rank, positive_min, positive_max = (
            rows[name].to_numpy() for name in ("score", "rank", "positive_score_min", "positive_score_max")
        )
        threshold = threshold_rules.compute_thresholds(
            params.mask, params.effective_threshold, positive_min, positive_max
        )
        passed = threshold_rules.passes_rule(params.mask, score, rank, threshold, params.rank_window)
        rows = rows.filter(pl.Series(passed))
    else:
        rows = rows.filter(pl.col("p_false_negative") <= risk_budget.MAX_P_FALSE_NEGATIVE)
    p = rows["p_false_negative"].to_numpy()
    query = rows.select(pl.struct("query_id", "fold").rle_id()).to_series().cast(pl.Int64).to_numpy()
    quota = np.full(int(query.max(initial=-1)) + 1, params.num_negatives)
    candidates, cells = risk_budget.pad_by_query(query, rows["score"].to_numpy(), p, quota)
    selection = solution.select(candidates) if solution else risk_budget.select_at_lambda(candidates, 0.0)
    selected = selection[cells]
    held_out_selected = selected & rows["held_out"].to_numpy()
    n_known = rows["weight"].to_numpy().astype(np.float64) - 1
    other_weight = np.where(selected & ~held_out_selected, pu_weight(p.astype(np.float64), n_known), 0.0)
    expected = float((p * other_weight).sum() / max(other_weight.sum(), 1))
    query_numbers = holdout_candidates.select(pl.col("query_id").unique(maintain_order=True)).with_row_index(
        "query_number"
    )
    query_number = rows.join(query_numbers, on="query_id", how="left", maintain_order="left")["query_number"].to_numpy()
    false_per_query = np.bincount(
        query_number, MISSING_PER_KNOWN_POSITIVE * n_known * held_out_selected, len(query_numbers)
    )
    others_per_query = np.bincount(query_number, other_weight, len(query_numbers))
    sums = resample_sums(np.column_stack([false_per_query, others_per_query]), HOLDOUT_BOOTSTRAP_SAMPLES, seed=0)
    low, high = np.quantile(_false_negative_rate(sums[:, 0], sums[:, 1]), [0.025, 0.975])
    return {
        "n_queries": len(query_numbers),
        "n_negatives": int(selected.sum()),
        "n_held_out": int(held_out_selected.sum()),
        "expected": round(expected, 5),
        "observed": round(float(_false_negative_rate(false_per_query.sum(), others_per_query.sum())), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
        "max_false_negatives": solution.max_false_negative_rate if solution else None,
    }


def _false_negative_rate(n_false: Any, n_others: Any) -> Any:
    return np.minimum(n_false / np.maximum(n_others, 1), 1.0)
