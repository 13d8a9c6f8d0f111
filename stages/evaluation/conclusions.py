"""The verdict on a test split of metrics.json, in numbers and words, which claim no more than the intervals support."""

from collections.abc import Mapping
from typing import Any, TypedDict

from stages.evaluation.tables import SYSTEM_LABELS
from stages.statistics.bootstrap import MIN_GROUPS, format_interval

HEADLINE_METRICS = ("nDCG@10", "MRR@10")
"""The metrics that are shown large; the first one decides."""
BASELINE = "embedder"
"""The system that others are compared with, and whose ranking is published if no reranker is."""

Comparison = Mapping[str, float | None]
"""A row against the embedder by one metric: "difference", its interval "low" and "high", and "p"."""


class Verdict(TypedDict):
    """What one test split says. The terminal, `prep status` and the report take their words from here."""

    winner: str | None
    """The challenger if the interval of its difference lies above 0, else the baseline; None if nobody can tell."""
    baseline: str
    challenger: str | None
    """The best other system on the split, whose difference to the baseline is given. It is the best of several on the
    same queries, so its difference is a little flattered."""
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    queries: int
    groups: int
    smallest_difference: float | None
    queries_for_half: int | None
    published: str
    """The ranking that a refresh publishes: "reranker", or the baseline if the reranker is shown to be worse."""
    reasons: list[str]
    """Sentences; the first is the result on the trained reranker."""
    advice: list[str]
    """What would help, as sentences."""


def build_verdict(metrics: Mapping[str, Any], split: str = "test") -> Verdict:
    """The verdict on a split of metrics.json. What can't be known is None, and the reasons say why."""
    metric = HEADLINE_METRICS[0]
    scores, tests = metrics[split], metrics["comparisons"][split]
    challenger = select_challenger({name: row[metric] for name, row in scores.items()}, tests)
    comparison: Comparison = tests[challenger][metric] if challenger else {}
    found = classify_difference(comparison if challenger else None)
    n_queries, n_groups = (metrics["candidate_lists"][split][name] for name in ("n_queries", "n_groups"))
    smallest = compute_smallest_difference(comparison.get("low"), comparison.get("high"))
    is_worse = metrics["collapse_reason"] or _classify_system(metrics, split, "reranker") == "worse"
    verdict = Verdict(
        winner={"better": challenger, "unknown": None}.get(found, BASELINE),
        baseline=BASELINE,
        challenger=challenger,
        metric=metric,
        difference=comparison.get("difference"),
        low=comparison.get("low"),
        high=comparison.get("high"),
        p=comparison.get("p"),
        queries=n_queries,
        groups=n_groups,
        smallest_difference=smallest,
        queries_for_half=4 * n_queries if smallest else None,
        published=BASELINE if is_worse else "reranker",
        reasons=[],
        advice=list_advice(metrics, split),
    )
    reasons = [describe_result(metrics, split), explain_interval(metrics, split), *describe_winner(verdict)]
    return {**verdict, "reasons": [*reasons, *describe_resolution(verdict)]}


def select_challenger(scores: Mapping[str, float], tests: Mapping[str, Mapping[str, Comparison]]) -> str | None:
    """The system with the best score beside the baseline, of equals the first of `scores`; None without any.

    A system that ranks as the baseline does on every query (a fusion with the weight 0) is taken only if there is no
    other: its difference says nothing.
    """
    metric = HEADLINE_METRICS[0]
    others = [name for name in scores if name in tests]
    equal = [name for name in others if tests[name][metric]["low"] == tests[name][metric]["high"] == 0]
    return max([name for name in others if name not in equal] or others, key=lambda name: scores[name], default=None)


def compute_smallest_difference(low: float | None, high: float | None) -> float | None:
    """The smallest difference of the best system to the baseline that so many test queries can show at 95 %.

    Defined as half the width of the difference's bootstrap interval: an observed difference of this size is the
    smallest whose interval leaves out 0. (A true one of this size is found in half of all such test splits.) The
    half-width as what a number of queries resolves is Sakai 2018, Laboratory Experiments in Information Retrieval,
    ch. 6, where it falls with the square root of that number: so four times the queries show half of it. Queries of one
    group count together, so four times the groups are needed. None without an interval, or if it has no width.
    """
    return round((high - low) / 2, 6) if low is not None and high is not None and high > low else None


def describe_result(metrics: Mapping[str, Any], split: str = "test") -> str:
    """The result on the trained reranker in one sentence."""
    if metrics["collapse_reason"]:
        return "The reranker collapsed: it no longer tells documents apart."
    if not metrics[split]:
        return "There are no test queries, so nothing is known of the reranker's quality."
    found, fused = (_classify_system(metrics, split, name) for name in ("reranker", "fused"))
    if found == "unknown":
        return "There are too few test queries to tell whether the reranker is better."
    if found != "unclear":
        return f"The trained reranker ranks {found} than the embedder."
    if fused == "better":
        return "Fused with the embedder the trained reranker ranks better; alone, it is not clearly better."
    return "No clear difference between the trained reranker and the embedder."


def explain_interval(metrics: Mapping[str, Any], split: str = "test") -> str:
    """What the trained reranker's interval on the split means."""
    if not metrics[split]:
        return f"A verdict needs test queries in at least {MIN_GROUPS} groups."
    comparison = metrics["comparisons"][split]["reranker"][HEADLINE_METRICS[0]]
    found = classify_difference(comparison)
    if found == "unknown":
        n_queries, n_groups = (metrics["candidate_lists"][split][name] for name in ("n_queries", "n_groups"))
        return (
            f"With {_count(n_queries, 'test query', 'test queries')} in {_count(n_groups, 'group', 'groups')} no "
            f"difference can be distinguished from chance; at least {MIN_GROUPS} groups are needed."
        )
    interval = (
        f"The trained reranker's difference in {HEADLINE_METRICS[0]} is {comparison['difference']:+.3f}, its 95% "
        f"interval {format_interval(comparison['low'], comparison['high'], '+.3f')}"
    )
    return {
        "better": f"{interval} leaves out 0: chance is an unlikely explanation.",
        "worse": f"{interval} leaves out 0: the loss is unlikely to be chance.",
        "unclear": f"{interval} holds 0: the difference may be chance. More test queries would narrow it.",
    }[found]


def describe_winner(verdict: Verdict) -> list[str]:
    """A sentence on the best system if it beats the baseline and is not the trained reranker, which has its own."""
    if verdict["winner"] in (None, BASELINE, "reranker") or verdict["low"] is None or verdict["high"] is None:
        return []
    interval = format_interval(verdict["low"], verdict["high"], "+.3f")
    return [
        f"Best on test is the row {SYSTEM_LABELS[str(verdict['winner'])]}: {verdict['metric']} "
        f"{verdict['difference']:+.3f} {interval} against the embedder."
    ]


def describe_resolution(verdict: Verdict) -> list[str]:
    """A sentence on the smallest difference that the split can show; none if that is not known."""
    if verdict["smallest_difference"] is None:
        return []
    return [
        f"{_count(verdict['queries'], 'test query', 'test queries')} in {_count(verdict['groups'], 'group', 'groups')} "
        f"can show differences in {verdict['metric']} from about {verdict['smallest_difference']:.3f} on; half of that "
        f"takes about {verdict['queries_for_half']:,} queries in {4 * verdict['groups']:,} groups."
    ]


def describe_publication(verdict: Verdict, ranking: str) -> str:
    """Which ranking is published, and why; `ranking` is not the verdict's if the reranker was published by --force."""
    if ranking == BASELINE:
        return (
            "The embedder's ranking is published, without a reranker: the trained one ranks worse. "
            "`prep refresh --force` publishes it all the same."
        )
    if ranking != verdict["published"]:
        return "The trained reranker is published as the ranking by --force, though it ranks worse than the embedder."
    if verdict["winner"] is None:
        return "The trained reranker is published as the ranking; nobody knows whether it is better than the embedder."
    return "The trained reranker is published as the ranking: nothing shows that it ranks worse than the embedder."


def list_advice(metrics: Mapping[str, Any], split: str = "test") -> list[str]:
    """What would help: more test queries if nothing can be told, or a better start if the reranker ranks worse."""
    found = _classify_system(metrics, split, "reranker")
    if found == "unknown":
        return ["Give the test split a larger share (test_ratio under [pairs]), or mark rows as test."]
    if found != "worse":
        return []
    advice = ["Do not rank with it alone: it learned too little from these questions."]
    if metrics["base_has_new_head"]:
        advice.append("Its base had no ranking head. Give more questions, or a base that ranks already ([train] base).")
    if _classify_system(metrics, split, "fused") != "worse":
        advice.append("Fused with the embedder's score it does no clear harm.")
    return advice


def classify_difference(comparison: Comparison | None) -> str:
    """better or worse if the interval leaves out 0, else unclear; unknown without an interval."""
    if comparison is None or comparison["low"] is None or comparison["high"] is None:
        return "unknown"
    return "better" if comparison["low"] > 0 else "worse" if comparison["high"] < 0 else "unclear"


def _classify_system(metrics: Mapping[str, Any], split: str, system: str) -> str:
    return classify_difference(metrics["comparisons"][split].get(system, {}).get(HEADLINE_METRICS[0]))


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
