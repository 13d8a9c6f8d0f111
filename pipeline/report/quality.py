"""The values of metrics.json for the headline and for the section on ranking quality."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import Dot, build_dot_plot
from stages.evaluation.conclusions import HEADLINE_METRICS, describe_publication
from stages.evaluation.retrievers import describe_retrievers
from stages.evaluation.tables import SYSTEM_LABELS, format_comparison

_HEADLINE_SYSTEMS = ("embedder", "reranker", "fused")


def build_headline(metrics: Mapping[str, Any], ranking: str) -> dict[str, Any]:
    """The verdict on the test split: its result in one sentence, its reasons and advice, and the large figures."""
    scores, comparisons = metrics["test"], metrics["comparisons"]["test"]
    systems = [system for system in _HEADLINE_SYSTEMS if system in scores]
    rows = [
        (
            metric,
            [
                {
                    "value": scores[system][metric],
                    "difference": format_comparison(comparisons[system][metric]) if system in comparisons else [],
                    "is_highlighted": system == "reranker",
                }
                for system in systems
            ],
        )
        for metric in HEADLINE_METRICS
        if systems
    ]
    verdict = metrics["verdict"]["test"]
    result, *reasons = verdict["reasons"]
    return {
        "result": result.removesuffix("."),
        "publication": describe_publication(verdict, ranking),
        "collapse_reason": metrics["collapse_reason"],
        "systems": [("" if system == "embedder" else "→ ") + SYSTEM_LABELS[system] for system in systems],
        "rows": rows,
        "lists": metrics["candidate_lists"]["test"],
        "reasons": reasons,
        "advice": verdict["advice"],
    }


def build_quality(metrics: Mapping[str, Any], retrievers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every system of the evaluation, on the test split or else on dev: plots of the headline's metrics, and a table of
    all figures, those of the retrievers alone (retrievers.json) at its end. None if neither split has a question."""
    split = "test" if metrics["test"] else "dev"
    scores = metrics[split]
    if not scores:
        return None
    forced = metrics["positives_forced"]
    tables = [("test", metrics["test"]), ("dev", metrics["dev"])]
    tables += [
        (f"{name}, with near duplicates of positives as misses", metrics["raw"][name])
        for name in ("test", "dev")
        if metrics["candidate_lists"][name].get("n_near_positives")
    ]
    tables += [(f"{name}, positives forced in", forced[name]) for name in ("test", "dev")]
    tables += [
        (f"{name}, retrievers alone, {view}", retrievers[key][name])
        for key, view in (("corpus", "whole corpus"), ("lists", "fixed lists"))
        for name in ("test", "dev", "train")
    ]
    names = list(scores["embedder"])
    return {
        "split": split,
        "top_k": metrics["parameters"]["top_k"],
        "recall": metrics["candidate_lists"][split]["recall_at_top_k"],
        "plots": [
            build_dot_plot(
                f"{metric}, {split}",
                list_dots(scores, metric, metrics["comparisons"][split]),
                scores["embedder"][metric],
            )
            for metric in HEADLINE_METRICS
        ],
        "metrics": names,
        "tables": [
            (title, [_make_table_row(system, row, names) for system, row in rows.items()])
            for title, rows in tables
            if rows
        ],
        "retrievers": describe_retrievers(retrievers),
        "weight": metrics["fusion"]["weight"],
        "is_weight_chosen": bool(metrics["fusion"]["selected_on"]),
        "has_base_reranker": "base_reranker" in scores,
    }


def list_dots(scores: Mapping[str, Any], metric: str, comparisons: Mapping[str, Any]) -> list[Dot]:
    """A dot for each system, with the interval of its difference drawn around the embedder's value."""
    center = scores["embedder"][metric]
    dots = []
    for system, row in scores.items():
        comparison = comparisons.get(system, {}).get(metric, {})
        low, high = (None if comparison.get(end) is None else center + comparison[end] for end in ("low", "high"))
        dots.append(Dot(SYSTEM_LABELS.get(system, system), row[metric], low, high, is_highlighted=system == "reranker"))
    return dots


def _make_table_row(system: str, row: Mapping[str, float], names: list[str]) -> dict[str, Any]:
    return {
        "label": SYSTEM_LABELS.get(system, system),
        "figures": [row[name] for name in names],
        "is_highlighted": system == "reranker",
    }
