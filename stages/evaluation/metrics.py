"""Ranking metrics of one system's run, per query, with ties counted against it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import polars as pl

Metric = Literal["nDCG@10", "MRR@10", "MAP@100", "Hit@1", "Hit@3", "Hit@5", "R@10"]
"""The metrics that every evaluation has."""


def list_metric_names(top_k: int) -> tuple[str, ...]:
    """The metrics that are reported for lists of `top_k` documents, named as in the literature."""
    return tuple(dict.fromkeys((*get_args(Metric), f"R@{top_k}")))


def assign_pessimistic_ranks(run: pl.DataFrame) -> pl.DataFrame:
    """`run` (query_id, doc_id, relevance, score) in its order of ranks, with `rank` from 1 and no two alike.

    Higher scores first; among equal scores the less relevant first, then by doc_id: a scorer that can't tell a
    positive from the rest gets no credit for it. A score that is no number stands behind all others.
    """
    worst = pl.lit(float("-inf"))
    score = pl.col("score").cast(pl.Float64)
    return (
        run.with_columns(score=pl.when(score.is_nan() | score.is_null()).then(worst).otherwise(score))
        .sort("query_id", "score", "relevance", "doc_id", descending=[False, True, False, False])
        .with_columns(rank=(pl.int_range(pl.len(), dtype=pl.Int32) + 1).over("query_id"))
    )


class Evaluator:
    """Call it with a run: every metric of every query of `qrels`; made once for many runs against the same qrels.

    Gives query_id, metric, value, in that order, sorted by query and then `metric_names`. `qrels` (query_id, doc_id,
    relevance) is whole: a positive that the run lacks is missed, and the ideal ranking of nDCG holds all positives. A
    relevance above 0 is relevant; nDCG's gain is the relevance itself, as in trec_eval and BEIR. A run is as for
    `assign_pessimistic_ranks`, of queries in `qrels`. A query that the run lacks gets 0.
    """

    def __init__(self, qrels: pl.DataFrame, metric_names: Sequence[str]) -> None:
        import ir_measures

        self.metric_names_by_measure = {_parse_measure(name): name for name in metric_names}
        self.max_cutoff = max(int(name.partition("@")[2]) for name in metric_names)
        self.metric_order = {name: place for place, name in enumerate(metric_names)}
        self.measure_evaluator = ir_measures.evaluator(
            list(self.metric_names_by_measure), _to_nested_dict(qrels, "relevance")
        )

    def __call__(self, run: pl.DataFrame) -> pl.DataFrame:
        # trec_eval breaks ties by doc_id, backwards; strict ranks leave it none to break
        ranked = (
            assign_pessimistic_ranks(run).filter(pl.col("rank") <= self.max_cutoff).with_columns(strict=-pl.col("rank"))
        )
        found = [
            (metric.query_id, self.metric_names_by_measure[metric.measure], float(metric.value))
            for metric in self.measure_evaluator.iter_calc(_to_nested_dict(ranked, "strict"))
        ]
        frame = pl.DataFrame(
            found, schema={"query_id": pl.String, "metric": pl.String, "value": pl.Float64}, orient="row"
        )
        place = pl.col("metric").replace_strict(self.metric_order, return_dtype=pl.Int32)
        return frame.sort("query_id", place)


def average_metrics(query_metrics: pl.DataFrame) -> dict[str, float]:
    """The mean of each metric over the queries of a `Evaluator`'s result."""
    values_by_metric: dict[str, list[float]] = {}
    for metric, value in query_metrics.select("metric", "value").iter_rows():
        values_by_metric.setdefault(metric, []).append(value)
    return {metric: math.fsum(part) / len(part) for metric, part in values_by_metric.items()}


def _parse_measure(name: str) -> Any:
    """`Hit@3` is ir_measures' Success@3, `MAP@100` its AP@100, `MRR@10` its RR@10."""
    import ir_measures

    family, _, cutoff = name.partition("@")
    measures: Mapping[str, Any] = {
        "nDCG": ir_measures.nDCG,
        "MRR": ir_measures.RR,
        "MAP": ir_measures.AP,
        "R": ir_measures.R,
        "Hit": ir_measures.Success,
    }
    return measures[family] @ int(cutoff)


def _to_nested_dict(frame: pl.DataFrame, value: str) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for query_id, doc_id, number in frame.select("query_id", "doc_id", value).iter_rows():
        nested.setdefault(query_id, {})[doc_id] = number
    return nested
