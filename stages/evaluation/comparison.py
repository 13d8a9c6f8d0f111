"""Systems that rank the same lists: the metrics of each query, their means, and the differences to the embedder."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from stages.core.schemas import PAIR_COLUMNS, PER_QUERY_METRICS
from stages.evaluation.candidate_lists import CandidateLists
from stages.evaluation.metrics import Evaluator, average_metrics, round_values
from stages.evaluation.tables import TABLE_METRICS
from stages.statistics.bootstrap import run_paired_bootstrap

TESTED_METRICS = TABLE_METRICS
"""The metrics by which each system is compared with the embedder."""


def compute_query_metrics(
    scored: pl.DataFrame,
    candidate_lists: CandidateLists,
    systems: Sequence[str],
    metric_names: Sequence[str],
    lists_by_split: Mapping[str, Sequence[str]],
) -> pl.DataFrame:
    """`PER_QUERY_METRICS`: the metrics of each query of each list, by each system; `scored` has a column for each.

    A system did not find the documents that it has no score of.
    """
    columns = dict.fromkeys(("split", "system", "query_id", "metric"), pl.String) | {"value": pl.Float64}
    parts = [pl.DataFrame(schema=columns)]
    for split, names in lists_by_split.items():
        queries = candidate_lists.queries.filter(pl.col("split") == split)
        if queries.is_empty():
            continue
        evaluator = Evaluator(candidate_lists.qrels.join(queries, on="query_id", how="semi"), metric_names)
        for name in names:
            ranked = scored.filter(pl.col("list") == name)
            for system in systems:
                run = ranked.select(*PAIR_COLUMNS, "relevance", score=system).filter(pl.col("score").is_not_null())
                values = evaluator.evaluate(run)
                parts.append(values.select(pl.lit(name).alias("split"), pl.lit(system).alias("system"), pl.all()))
    groups = candidate_lists.queries.select("query_id", "group")
    return (
        pl.concat(parts).join(groups, on="query_id", how="left", maintain_order="left").select(PER_QUERY_METRICS.names)
    )


def average_by_system(query_metrics: pl.DataFrame, systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """system -> metric -> mean; empty without queries."""
    if query_metrics.is_empty():
        return {}
    return {
        system: round_values(average_metrics(query_metrics.filter(pl.col("system") == system))) for system in systems
    }


def compare_to_embedder(
    query_metrics: pl.DataFrame, systems: Sequence[str], *, bootstrap_samples: int, seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paired bootstrap by group of each system minus the embedder: system -> metric -> difference, low, high, p."""
    if query_metrics.is_empty():
        return {}
    wide = query_metrics.filter(pl.col("metric").is_in(TESTED_METRICS)).pivot(
        "metric", index=["system", "query_id", "group"], values="value"
    )
    metrics_by_system = {system: wide.filter(pl.col("system") == system).sort("query_id") for system in systems}
    embedder = metrics_by_system.pop("embedder")
    comparisons = {}
    for system, values in metrics_by_system.items():
        results = run_paired_bootstrap(
            values.select(TESTED_METRICS).to_numpy() - embedder.select(TESTED_METRICS).to_numpy(),
            embedder["group"].to_numpy(),
            n_resamples=bootstrap_samples,
            seed=seed,
        )
        comparisons[system] = {
            name: round_values(result._asdict()) for name, result in zip(TESTED_METRICS, results, strict=True)
        }
    return comparisons
