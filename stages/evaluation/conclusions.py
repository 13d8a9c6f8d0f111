"""Conclusions about the trained reranker from metrics.json, which claim no more than the intervals support."""

from collections.abc import Mapping
from typing import Any

from stages.evaluation.bootstrap import MIN_GROUPS

HEADLINE_METRICS = ("nDCG@10", "MRR@10")
"""The metrics that are shown large; the first one decides."""

Comparison = Mapping[str, float | None]
"""A row against the embedder by one metric: "difference", its interval "low" and "high", and "p"."""


def describe_result(metrics: Mapping[str, Any]) -> str:
    """The result on the test split in one sentence, without a full stop."""
    if metrics["collapse_reason"]:
        return "The reranker collapsed: it no longer tells documents apart"
    if not metrics["test"]:
        return "There are no test queries, so nothing is known of the reranker's quality"
    found = _classify_rows(metrics)
    if found["reranker"] == "unknown":
        return "There are too few test queries to tell whether the reranker is better"
    if found["reranker"] != "unclear":
        return f"The trained reranker ranks {found['reranker']} than the embedder"
    if found["fused"] == "better":
        return "Fused with the embedder the trained reranker ranks better; alone, it is not clearly better"
    return "No clear difference between the trained reranker and the embedder"


def list_advice(metrics: Mapping[str, Any]) -> list[str]:
    """What to do about a reranker that ranks worse than the embedder alone; empty if it does not."""
    found = _classify_rows(metrics)
    if found["reranker"] != "worse":
        return []
    advice = ["Do not rank with it alone: it learned too little from these questions."]
    if metrics["base_has_new_head"]:
        advice.append("Its base had no ranking head. Give more questions, or a base that ranks already ([train] base).")
    if found["fused"] != "worse":
        advice.append("Fused with the embedder's score it does no clear harm.")
    return advice


def classify_difference(comparison: Comparison | None) -> str:
    """better or worse if the interval leaves out 0, else unclear; unknown without an interval."""
    if comparison is None or comparison["low"] is None or comparison["high"] is None:
        return "unknown"
    return "better" if comparison["low"] > 0 else "worse" if comparison["high"] < 0 else "unclear"


def explain_interval(metrics: Mapping[str, Any]) -> str:
    """What the trained reranker's interval on the test split means."""
    n_groups = metrics["candidate_lists"]["test"]["n_groups"]
    interval = f"The trained reranker's interval of {HEADLINE_METRICS[0]}"
    return {
        "better": f"{interval} leaves out 0: chance is an unlikely explanation.",
        "worse": f"{interval} leaves out 0: the loss is unlikely to be chance.",
        "unclear": f"{interval} holds 0: the difference may be chance. More test queries would narrow it.",
        "unknown": f"With {n_groups:,} group{'' if n_groups == 1 else 's'} no difference can be distinguished from "
        f"chance; at least {MIN_GROUPS} are needed.",
    }[_classify_rows(metrics)["reranker"]]


def _classify_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    tests = metrics["comparisons"]["test"]
    return {row: classify_difference(tests.get(row, {}).get(HEADLINE_METRICS[0])) for row in ("reranker", "fused")}
