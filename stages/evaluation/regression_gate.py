"""The gate of `refresh`: is the new reranker significantly worse than the published one, on the new test split?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.context import StageContext, Summary
from stages.core.device import Device
from stages.core.params import BaseParams, device_option, option, seed_option
from stages.core.schemas import PAIR_COLUMNS, PER_QUERY_METRICS, QUERIES, read_table, scan_documents
from stages.evaluation.candidate_lists import build_candidate_lists
from stages.evaluation.metrics import Evaluator, Metric, round_values
from stages.evaluation.params import Params as EvaluateParams
from stages.reranking.scoring import gather_pair_texts, score_with_cross_encoders
from stages.statistics import bootstrap


class Params(BaseParams):
    """[refresh]"""

    metric: Metric = option(
        "nDCG@10", "Metric of the regression gate: a reranker that is significantly worse on test is not published."
    )
    confidence: float = option(
        0.95,
        "Confidence of the gate's interval: a new reranker whose interval lies below 0 is refused.",
        advanced=True,
        gt=0.5,
        lt=1,
    )
    bootstrap_samples: int = bootstrap.bootstrap_samples_option()
    seed: int = seed_option()
    device: Device = device_option()


VERSION = 3


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write gate.json: the published reranker in `inputs["published_reranker"]` against the new one's `per_query`.

    Both rank the test lists of the evaluation, whose settings stand in `metrics`. Queries that were in train or dev for
    the published reranker (`inputs["published_queries"]`) are left out: it was trained on their judgements.
    """
    evaluate_params = EvaluateParams(**json.loads(inputs["metrics"].read_text(encoding="utf-8"))["parameters"])
    candidate_lists = build_candidate_lists(
        inputs,
        ["test"],
        top_k=evaluate_params.top_k,
        max_queries=evaluate_params.max_queries,
        seed=evaluate_params.seed,
        include_forced=False,
    )
    old_queries = read_table(inputs["published_queries"], QUERIES, ["query_id", "split"])
    seen_query_ids = old_queries.filter(pl.col("split") != "test")["query_id"]
    n_excluded = candidate_lists.queries["query_id"].is_in(seen_query_ids.implode()).sum()
    if n_excluded:
        context.progress.log(f"gate: {n_excluded} test queries were in train or dev before: they are left out")
    candidate_lists = candidate_lists.exclude_queries(seen_query_ids)
    is_new = (pl.col("split") == "test") & (pl.col("system") == "reranker") & (pl.col("metric") == params.metric)
    new_metrics = read_table(inputs["per_query"], PER_QUERY_METRICS).filter(
        is_new & ~pl.col("query_id").is_in(seen_query_ids.implode())
    )
    if candidate_lists.queries.is_empty():
        verdict = compare_rerankers(new_metrics, new_metrics.drop("group"), params)
    else:
        corpus = scan_documents(inputs["corpus"]).collect()
        text_pairs = gather_pair_texts(pairs := candidate_lists.select_unique_pairs(), candidate_lists.queries, corpus)
        old_scores = score_with_cross_encoders(
            text_pairs,
            [inputs["published_reranker"]],
            device=params.device,
            dtype=evaluate_params.dtype,
            progress=context.progress,
        )
        ranked = candidate_lists.lists.join(pairs.with_columns(score=pl.Series(next(old_scores))), on=PAIR_COLUMNS)
        verdict = compare_rerankers(
            new_metrics, Evaluator(candidate_lists.qrels, [params.metric]).evaluate(ranked), params
        )
    (out / "gate.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return verdict


def compare_rerankers(new_metrics: pl.DataFrame, old_metrics: pl.DataFrame, params: Params) -> dict[str, Any]:
    """The verdict on `new_metrics` (query_id, group, value) against `old_metrics` (query_id, value), of equal queries.

    "worse" or "better" if the interval of the mean difference new - old (paired bootstrap by group) leaves out 0, else
    "same", also with too few groups to tell. Raises `ValueError` if the queries differ.
    """
    if new_metrics["query_id"].sort().to_list() != old_metrics["query_id"].sort().to_list():
        raise ValueError("the new and the old reranker were not evaluated on the same queries")
    paired = new_metrics.join(old_metrics.select("query_id", old="value"), on="query_id").sort("query_id")
    statistics: dict[str, float | None] = dict.fromkeys(
        ["new_mean", "published_mean", "difference", "low", "high", "p"]
    )
    if paired.height:
        values = paired.select("value", "old").to_numpy()
        [comparison] = bootstrap.run_paired_bootstrap(
            values[:, :1] - values[:, 1:],
            paired["group"].to_numpy(),
            n_resamples=params.bootstrap_samples,
            seed=params.seed,
            confidence=params.confidence,
        )
        statistics.update(
            new_mean=float(values[:, 0].mean()), published_mean=float(values[:, 1].mean()), **comparison._asdict()
        )
    low, high = statistics["low"], statistics["high"]
    verdict = "worse" if high is not None and high < 0 else "better" if low is not None and low > 0 else "same"
    return {"metric": params.metric, **round_values(statistics), "verdict": verdict, "n_queries": paired.height}
