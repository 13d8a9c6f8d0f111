"""Calibration: the expected false negatives and the hardness under each budget and each fixed rule.

Nothing is mined again: the candidates and their p_false_negative are those of verdicts.parquet. The expected share of
false negatives is the mean p_false_negative of the selected candidates. Its interval is a bootstrap over queries, so it
does not cover an error of the model.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.bench.leak import RULE_PRESETS, build_candidate_matrix, select_by_preset, select_within_budgets
from stages.core import schemas
from stages.core.arrays import Bools, Ints
from stages.core.context import Summary
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.core.query_batches import sort_by_score
from stages.mining.holdout_validation import validate_on_holdout
from stages.mining.mask import NEGATIVE
from stages.mining.params import Params
from stages.mining.risk_budget import PaddedCandidates, RiskSolution
from stages.statistics.bootstrap import resample_sums

CALIBRATION_BUDGETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
CALIBRATION_QUERIES = 20_000
"""Train queries that are used, sampled by hash."""
CALIBRATION_BOOTSTRAP_SAMPLES = 500


def compute_tradeoffs(inputs: Mapping[str, Path], params: Params) -> dict[str, Any]:
    """`budgets` and `rules`, each with expected, low, high, hardness, fill and holdout_validation; and the number of
    queries.

    `inputs` holds the files queries, qrels_scored, verdicts and holdout_candidates of the learned mask of `params`.
    Only the candidates that a rule decides on are used: no known positives, documents with the answer, and so on.
    """
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "split"])
    train_queries = queries.filter(pl.col("split") == "train")["query_id"]
    sampled_queries = sample_by_hash(train_queries, CALIBRATION_QUERIES, "calibrate")
    verdicts = schemas.scan_table(inputs["verdicts"], schemas.VERDICTS)
    is_decided_by_rule = (pl.col("verdict") == NEGATIVE) & (pl.col("reason") != "curated_negative") | (
        pl.col("reason") == "learned"
    )
    rows = verdicts.filter(
        is_decided_by_rule & pl.col("p_false_negative").is_not_null() & pl.col("query_id").is_in(sampled_queries)
    )
    table = rows.select("query_id", "doc_id", "rank", "score", "p_false_negative").collect()
    if table.is_empty():
        raise InputError("no candidate has an estimate: no train question has both a positive and a candidate")
    table = sort_by_score(table)
    qrels_scored = schemas.read_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
    matrix = build_candidate_matrix(table, table["p_false_negative"].to_numpy(), qrels_scored, params.num_negatives)
    matrix = replace(
        matrix, lists=replace(matrix.lists, quota=compute_quotas(table, qrels_scored, params.num_negatives))
    )
    holdout_candidates = schemas.read_table(inputs["holdout_candidates"], schemas.HOLDOUT_CANDIDATES)

    def validate_mask(solution: RiskSolution | None, **settings: Any) -> Summary | None:
        return validate_on_holdout(params.model_copy(update=settings), solution, holdout_candidates)

    budgets = [
        {
            "max_false_negatives": share,
            **summarise_selection(matrix.lists, selection),
            "holdout_validation": validate_mask(solution),
        }
        for share, (solution, selection) in zip(
            CALIBRATION_BUDGETS, select_within_budgets(matrix, CALIBRATION_BUDGETS), strict=True
        )
    ]
    rule_rows = []
    for name, preset in RULE_PRESETS.items():
        validation = validate_mask(None, mask=preset.rule, threshold=preset.threshold, rank_window=preset.rank_window)
        rule_rows.append(
            {
                "rule": name,
                **summarise_selection(matrix.lists, select_by_preset(matrix, preset)),
                # the ranks of the held-out positives count the known positives
                "holdout_validation": None if preset.excludes_positives else validation,
            }
        )
    return {"queries": len(matrix.lists.quota), "of": len(train_queries), "budgets": budgets, "rules": rule_rows}


def compute_quotas(table: pl.DataFrame, qrels_scored: pl.DataFrame, n_negatives: int) -> Ints:
    """`n_negatives` less the curated negatives, for each query of `table` in its order: [q]."""
    curated = qrels_scored.filter(pl.col("relevance") == 0).group_by("query_id").agg(n_curated=pl.len())
    queries = table.select(pl.col("query_id").unique(maintain_order=True))
    n_curated = queries.join(curated, on="query_id", how="left", maintain_order="left")["n_curated"]
    return (n_negatives - n_curated.fill_null(0).cast(pl.Int64)).clip(0).to_numpy()


def summarise_selection(candidates: PaddedCandidates, selection: Bools) -> dict[str, float | None]:
    """The expected share of false negatives among `selection`, its 95 % interval, their mean score, and the fill."""
    n = selection.sum(axis=1)
    p = np.where(selection, candidates.p, 0).sum(axis=1, dtype=np.float64)
    n_selected = int(n.sum())
    if not n_selected:
        return {"expected": None, "low": None, "high": None, "hardness": None, "fill": 0.0}
    sums = resample_sums(np.column_stack([p, n]), CALIBRATION_BOOTSTRAP_SAMPLES, seed=0)
    low, high = np.quantile(sums[:, 0] / np.maximum(sums[:, 1], 1), [0.025, 0.975])
    return {
        "expected": float(p.sum() / n_selected),
        "low": float(low),
        "high": float(high),
        "hardness": float(candidates.score[selection].mean(dtype=np.float64)),
        "fill": n_selected / int(candidates.quota.sum()),
    }
