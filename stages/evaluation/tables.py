"""The metrics of metrics.json as text for a person."""

from collections.abc import Mapping
from typing import Any

from stages.statistics.bootstrap import format_interval

SYSTEM_LABELS = {
    "bm25": "BM25",
    "embedder": "embedder",
    "base_reranker": "base reranker",
    "reranker": "trained reranker",
    "fused": "fused",
    "hybrid": "BM25 + embedder",
}
"""System -> its label, in the order of the tables."""
TABLE_METRICS = ("nDCG@10", "MRR@10", "MAP@100", "Hit@1")


def format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    """`+0.083`, `[+0.051, +0.114]` and `p = 0.002` of a `bootstrap.BootstrapResult` as a dict."""
    difference = f"{comparison['difference']:+.3f}"
    if comparison["p"] is None:
        return [difference, "too few groups"]
    p = f"p = {comparison['p']:.3f}" if comparison["p"] >= 0.001 else "p < 0.001"
    return [difference, format_interval(comparison["low"], comparison["high"], "+.3f"), p]


def format_metrics_table(metrics: Mapping[str, Any], split: str = "test") -> list[list[str]]:
    """A header and one row for each system of a split of metrics.json; empty if the split holds no query."""
    if not metrics[split]:
        return []
    names = [*TABLE_METRICS, f"R@{metrics['parameters']['top_k']}"]
    table = [["", *names, "nDCG@10 against the embedder"]]
    for system, values in metrics[split].items():
        label = SYSTEM_LABELS[system]
        if system in ("fused", "hybrid"):
            label += f", weight {metrics['fusion']['weight']:.2f}"
        comparison = metrics["comparisons"][split].get(system, {}).get("nDCG@10")
        difference = " ".join(format_comparison(comparison)) if comparison else ""
        table.append([label, *(f"{values[name]:.3f}" for name in names), difference])
    return table
