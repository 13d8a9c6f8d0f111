"""Ranking metrics of a system's run, per query; ties count against the system."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import polars as pl

Metric = Literal["nDCG@10", "MRR@10", "MAP@100", "Hit@1", "Hit@3", "Hit@5", "R@10"]
"""The metrics of every evaluation."""


def list_metric_names(top_k: int) -> tuple[str, ...]:
    """The metrics of lists of `top_k` documents, named as in the literature."""
    return tuple(dict.fromkeys((*get_args(Metric), f"R@{top_k}")))


def assign_pessimistic_ranks(run: pl.DataFrame) -> pl.DataFrame:
    """`run` (query_id, doc_id, relevance, score) in the order of its ranks, with `rank` from 1 and without ties.

    Higher scores come first; among equal scores the less relevant document, then the smaller doc_id: a scorer that
    gives a positive the score of another document gets no credit for it. A missing score or NaN comes last.
    """
    worst = pl.lit(float("-inf"))
    score = pl.col("score").cast(pl.Float64)
    return (
        run.with_columns(score=pl.when(score.is_nan() | score.is_null()).then(worst).otherwise(score))
        .sort("query_id", "score", "relevance", "doc_id", descending=[False, True, False, False])
        .with_columns(rank=(pl.int_range(pl.len(), dtype=pl.Int32) + 1).over("query_id"))
    )


class Evaluator:
    """Computes the metrics of runs against the same qrels.

    `qrels` (query_id, doc_id, relevance) holds all judgements: a positive that a run lacks counts as missed, and the
    ideal ranking of nDCG holds all positives. A relevance above 0 is relevant; nDCG's gain is the relevance itself, as
    in trec_eval and BEIR.
    """

    def __init__(self, qrels: pl.DataFrame, metric_names: Sequence[str]) -> None:
        import ir_measures

        self.metric_names_by_measure = {_parse_measure(name): name for name in metric_names}
        self.max_cutoff = max(int(name.partition("@")[2]) for name in metric_names)
        self.metric_order = {name: place for place, name in enumerate(metric_names)}
        self.measure_evaluator = ir_measures.evaluator(
            list(self.metric_names_by_measure), _to_nested_dict(qrels, "relevance")
        )

    def evaluate(self, run: pl.DataFrame) -> pl.DataFrame:
        """query_id, metric and value of every query of the qrels, sorted by query and then by `metric_names`.

        `run` is as for `assign_pessimistic_ranks`, of queries in the qrels. A query that it lacks gets 0.
        """
        # trec_eval breaks ties by doc_id in reverse; ranks without ties leave it none to break
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
    """The mean of each metric over the queries of an `Evaluator.evaluate` result."""
    values_by_metric: dict[str, list[float]] = {}
    for metric, value in query_metrics.select("metric", "value").iter_rows():
        values_by_metric.setdefault(metric, []).append(value)
    return {metric: math.fsum(part) / len(part) for metric, part in values_by_metric.items()}


def round_values(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Rounded to 6 digits, as metrics.json and gate.json hold them."""
    return {name: None if value is None else round(value, 6) for name, value in values.items()}


def _parse_measure(name: str) -> Any:
    """The measure of ir_measures, which calls Hit@3 Success@3, MAP@100 AP@100 and MRR@10 RR@10."""
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
