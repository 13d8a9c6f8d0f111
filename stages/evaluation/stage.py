"""Stage `compute_metrics`: the trained reranker beside BM25, the embedder and its own base, on the same candidate
lists."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.context import StageContext, Summary
from stages.core.device import Device
from stages.core.params import BaseParams as Base
from stages.core.params import option
from stages.core.run_params import device_option, dtype_option, seed_option
from stages.core.schemas import PAIR_COLUMNS, PER_QUERY_METRICS, scan_documents, write_table
from stages.evaluation.bootstrap import MIN_GROUPS, bootstrap_samples_option, run_paired_bootstrap
from stages.evaluation.candidate_lists import CandidateLists, build_candidate_lists
from stages.evaluation.fusion import DEFAULT_FUSION_WEIGHT, fuse_scores, select_fusion_weight
from stages.evaluation.metrics import Evaluator, average_metrics, list_metric_names
from stages.reranking.cross_encoder import Dtype, has_head
from stages.reranking.scoring import gather_pair_texts, score_with_bm25, score_with_cross_encoders

SYSTEMS = ("bm25", "embedder", "base_reranker", "reranker", "fused")
EVALUATED_SPLITS = ("dev", "test")
TESTED_METRICS = ("nDCG@10", "MRR@10", "MAP@100", "Hit@1")


class Params(Base):
    """[evaluate]"""

    top_k: int = option(50, "rerank this many of the retriever's best documents for each question", ge=1)
    max_queries: int = option(
        300,
        "evaluate at most this many questions of dev and of test each, drawn by a hash of seed and question id; 0: all",
        ge=0,
    )
    bootstrap_samples: int = bootstrap_samples_option()
    seed: int = seed_option()
    device: Device = device_option()
    dtype: Dtype = dtype_option()


VERSION = 2


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write metrics.json and per_query.parquet for the reranker in `inputs`, and sum them up.

    base_reranker is `inputs["base_model"]`, the folder of the model that training began with, with the same fresh head
    where it needed one.
    """
    candidate_lists = build_candidate_lists(
        inputs, EVALUATED_SPLITS, top_k=params.top_k, max_queries=params.max_queries, seed=params.seed
    )
    corpus = scan_documents(inputs["corpus"]).collect()
    for line in list_caveats(candidate_lists, corpus.height, params):
        context.progress.log(line)
    training_report = json.loads(inputs["training"].read_text(encoding="utf-8"))
    # where the base lies is [train]'s to say, so it comes as an input; training.json has its name and weights' digest
    base_folder = inputs["base_model"]
    untrained_head = not has_head(base_folder)
    if untrained_head:
        context.progress.log("base_reranker is an encoder with a fresh random head: its figures are those of chance")

    pairs = candidate_lists.select_unique_pairs()
    reranker, base_reranker = score_with_cross_encoders(
        gather_pair_texts(pairs, candidate_lists.queries, corpus),
        (inputs["reranker"], base_folder),
        device=params.device,
        dtype=params.dtype,
        seed=training_report["seed"],
        progress=context.progress,
    )
    bm25 = score_with_bm25(pairs, candidate_lists.queries, corpus)
    columns = {"bm25": bm25, "base_reranker": base_reranker, "reranker": reranker}
    scores = pairs.with_columns(pl.Series(name, query_metrics) for name, query_metrics in columns.items())
    metrics, query_metrics = compute_metrics(candidate_lists, scores, params)
    metrics["base_has_new_head"] = untrained_head
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_table(query_metrics, PER_QUERY_METRICS, out / "per_query.parquet")
    return summarise_metrics(metrics)


def compute_metrics(
    candidate_lists: CandidateLists, scores: pl.DataFrame, params: Params
) -> tuple[dict[str, Any], pl.DataFrame]:
    """All figures of metrics.json (except what only the models know), and the per-query table behind them.

    `scores` holds every pair of `candidate_lists` once: query_id, doc_id, bm25, base_reranker, reranker.
    """
    names = list_metric_names(params.top_k)
    scored_candidates = candidate_lists.lists.join(scores, on=PAIR_COLUMNS, how="left", maintain_order="left")
    weight, chosen_on = select_fusion_weight(scored_candidates.filter(pl.col("list") == "dev"), candidate_lists.qrels)
    scored_candidates = scored_candidates.with_columns(fused=fuse_scores(scored_candidates, weight))
    query_metrics = compute_query_metrics(scored_candidates, candidate_lists, names)
    metrics_by_list: dict[str, dict[str, dict[str, float]]] = {
        f"{split}{suffix}": {
            row: _round_values(average_metrics(part))
            for row in SYSTEMS
            if (
                part := query_metrics.filter((pl.col("split") == f"{split}{suffix}") & (pl.col("system") == row))
            ).height
        }
        for split in EVALUATED_SPLITS
        for suffix in ("", "_forced")
    }
    metrics = {
        "dev": metrics_by_list["dev"],
        "test": metrics_by_list["test"],
        "positives_forced": {"dev": metrics_by_list["dev_forced"], "test": metrics_by_list["test_forced"]},
        "comparisons": {
            split: compare_to_embedder(query_metrics.filter(pl.col("split") == split), params)
            for split in EVALUATED_SPLITS
        },
        "fusion": {"weight": weight, "selected_on": chosen_on},
        "candidate_lists": {
            split: _describe_lists(split, candidate_lists, metrics_by_list[split], params) for split in EVALUATED_SPLITS
        },
        "collapse_reason": detect_score_collapse(scored_candidates.filter(pl.col("list").is_in(EVALUATED_SPLITS))),
        "parameters": params.model_dump(exclude=params.fields_with_mark("unkeyed")),
    }
    return metrics, query_metrics


def compute_query_metrics(
    scored_candidates: pl.DataFrame, candidate_lists: CandidateLists, metric_names: Sequence[str]
) -> pl.DataFrame:
    """PER_QUERY: each list's metrics of each row and query; `scored_candidates` is the lists with one column a row of
    ROWS."""
    columns = dict.fromkeys(("split", "system", "query_id", "metric"), pl.String) | {"value": pl.Float64}
    parts = [pl.DataFrame(schema=columns)]
    for split in EVALUATED_SPLITS:
        queries = candidate_lists.queries.filter(pl.col("split") == split)
        if queries.is_empty():
            continue
        evaluator = Evaluator(candidate_lists.qrels.join(queries, on="query_id", how="semi"), metric_names)
        for name in (split, f"{split}_forced"):
            ranked = scored_candidates.filter(pl.col("list") == name)
            for row in SYSTEMS:
                found = evaluator(ranked.select("query_id", "doc_id", "relevance", score=row))
                parts.append(found.select(pl.lit(name).alias("split"), pl.lit(row).alias("system"), pl.all()))
    groups = candidate_lists.queries.select("query_id", "group")
    return (
        pl.concat(parts).join(groups, on="query_id", how="left", maintain_order="left").select(PER_QUERY_METRICS.names)
    )


def compare_to_embedder(query_metrics: pl.DataFrame, params: Params) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paired bootstrap by group of every row against the embedder: row -> metric -> difference, low, high, p."""
    if query_metrics.is_empty():
        return {}
    wide = query_metrics.filter(pl.col("metric").is_in(TESTED_METRICS)).pivot(
        "metric", index=["system", "query_id", "group"], values="value"
    )
    metrics_by_system = {row: wide.filter(pl.col("system") == row).sort("query_id") for row in SYSTEMS}
    reference = metrics_by_system["embedder"].select(TESTED_METRICS).to_numpy()
    group = metrics_by_system["embedder"]["group"].to_numpy()
    differences_by_system = {}
    for row in SYSTEMS:
        if row != "embedder":
            differences = metrics_by_system[row].select(TESTED_METRICS).to_numpy() - reference
            comparisons = run_paired_bootstrap(
                differences, group, n_resamples=params.bootstrap_samples, seed=params.seed
            )
            differences_by_system[row] = {
                name: _round_values(one._asdict()) for name, one in zip(TESTED_METRICS, comparisons, strict=True)
            }
    return differences_by_system


def detect_score_collapse(scored_candidates: pl.DataFrame) -> str | None:
    """What is wrong with a reranker that can't tell documents apart, or None.

    `scored_candidates` holds the lists with the column `reranker`. Collapsed means: a score is no number, the standard
    deviation within lists is below 1e-6 on average, or over 95 % of the neighbours in the rankings are tied.
    """
    keys = ["list", "query_id"]
    score = pl.col("reranker").cast(pl.Float64)
    scored_candidates = scored_candidates.filter(pl.len().over(keys) > 1).sort(*keys, "reranker")
    if scored_candidates.is_empty():
        return None
    if not scored_candidates["reranker"].is_finite().all():
        return "the reranker's scores are not all finite numbers: its training diverged"
    mean_deviation = (
        scored_candidates.group_by(keys, maintain_order=True).agg(score.std(ddof=0))["reranker"].to_numpy().mean()
    )
    if mean_deviation < 1e-6:
        return (
            f"the reranker gives all documents of a list the same score (mean standard deviation {mean_deviation:.1e})"
        )
    tied_share = (scored_candidates.select(score.diff().over(keys)).drop_nulls().to_numpy() == 0).mean()
    if tied_share > 0.95:
        return f"{tied_share:.1%} of neighbours in the reranker's rankings have the same score"
    return None


def list_caveats(candidate_lists: CandidateLists, corpus_size: int, params: Params) -> Iterator[str]:
    """What a reader of the figures must know of: samples, empty splits, few groups, short lists."""
    for split in EVALUATED_SPLITS:
        queries = candidate_lists.queries.filter(pl.col("split") == split)
        groups = queries["group"].n_unique()
        if queries.is_empty():
            yield f"{split}: no question has a positive, so there is nothing to evaluate"
        elif queries.height < candidate_lists.n_queries_available[split]:
            yield (
                f"{split}: {queries.height} of {candidate_lists.n_queries_available[split]} questions are "
                f"evaluated (max_queries)"
            )
        if 0 < groups < MIN_GROUPS:
            yield f"{split}: with {groups} groups of questions no difference can be told from luck"
    if "dev" not in candidate_lists.queries["split"]:
        yield f"without dev the weight of the fusion is not chosen: it is {DEFAULT_FUSION_WEIGHT}"
    list_lengths = candidate_lists.lists.group_by("list", "query_id").len()["len"].to_numpy()
    if list_lengths.size and list_lengths.min() < min(params.top_k, corpus_size):
        yield f"some lists hold {list_lengths.min()} documents, not top_k = {params.top_k}: mined no deeper (depth)"


def summarise_metrics(metrics: Mapping[str, Any]) -> Summary:
    """What a terminal shows of metrics.json: TESTED by split and row, test's differences, the collapse."""
    main = {
        split: {row: {name: found[name] for name in TESTED_METRICS} for row, found in metrics[split].items()}
        for split in EVALUATED_SPLITS
    }
    return {
        **main,
        "differences": {row: tests["nDCG@10"] for row, tests in metrics["comparisons"]["test"].items()},
        "n_queries": {split: metrics["candidate_lists"][split]["n_queries"] for split in EVALUATED_SPLITS},
        "fusion_weight": metrics["fusion"]["weight"],
        "collapse_reason": metrics["collapse_reason"],
    }


def format_metrics_table(metrics: Mapping[str, Any], split: str = "test") -> list[list[str]]:
    """metrics.json's figures of one split for a terminal: a header, then a line a row; empty where there are none."""
    if not metrics[split]:
        return []
    names = [*TESTED_METRICS, f"R@{metrics['parameters']['top_k']}"]
    table = [["", *names, "nDCG@10 against the embedder"]]
    for row, found in metrics[split].items():
        test = metrics["comparisons"][split].get(row, {}).get("nDCG@10")
        table.append(
            [
                _SYSTEM_LABELS[row].format(**metrics["fusion"]),
                *(f"{found[name]:.3f}" for name in names),
                _format_difference(test),
            ]
        )
    return table


_SYSTEM_LABELS = {
    "bm25": "BM25",
    "embedder": "embedder",
    "base_reranker": "base reranker",
    "reranker": "trained reranker",
    "fused": "fused, weight {weight:.2f}",
}


def _format_difference(comparison: Mapping[str, float | None] | None) -> str:
    """`+0.083 [+0.051, +0.114] p = 0.002`."""
    if comparison is None:
        return ""
    if comparison["p"] is None:
        return f"{comparison['difference']:+.3f} (too few groups to test)"
    return (
        f"{comparison['difference']:+.3f} [{comparison['low']:+.3f}, {comparison['high']:+.3f}] p = "
        f"{comparison['p']:.3f}"
    )


def _describe_lists(
    split: str, candidate_lists: CandidateLists, metrics_by_system: Mapping[str, Mapping[str, float]], params: Params
) -> dict[str, Any]:
    queries = candidate_lists.queries.filter(pl.col("split") == split)
    documents = candidate_lists.lists.filter(pl.col("list") == split).height
    return {
        "n_queries": queries.height,
        "n_groups": queries["group"].n_unique(),
        "mean_documents_per_query": round(documents / queries.height, 6) if queries.height else 0,
        "recall_at_top_k": metrics_by_system["embedder"][f"R@{params.top_k}"] if metrics_by_system else None,
        "n_queries_available": candidate_lists.n_queries_available[split],
    }


def _round_values(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(value, 6) for name, value in figures.items()}
