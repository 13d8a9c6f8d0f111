"""Step `evaluate`: the trained reranker beside BM25, the embedder and its base model, on the same candidate lists."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.context import StageContext, Summary
from stages.core.schemas import PAIR_COLUMNS, PER_QUERY_METRICS, scan_documents, write_table
from stages.evaluation.candidate_lists import CandidateLists, build_candidate_lists
from stages.evaluation.collapse import detect_score_collapse
from stages.evaluation.comparison import average_by_system, compare_to_embedder, compute_query_metrics
from stages.evaluation.conclusions import build_verdict
from stages.evaluation.fusion import DEFAULT_FUSION_WEIGHT, fuse_scores, select_fusion_weight
from stages.evaluation.metrics import list_metric_names
from stages.evaluation.params import Params as Params
from stages.evaluation.tables import SYSTEM_LABELS, TABLE_METRICS
from stages.reranking.cross_encoder import has_head
from stages.reranking.scoring import gather_pair_texts, score_with_bm25, score_with_cross_encoders
from stages.statistics.bootstrap import MIN_GROUPS

EVALUATED_SPLITS = ("dev", "test")
_LISTS_BY_SPLIT = {split: (split, f"{split}_raw", f"{split}_forced") for split in EVALUATED_SPLITS}

VERSION = 5


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write metrics.json and per_query.parquet for the reranker in `inputs`, and summarise them.

    base_reranker is `inputs["base_model"]`, the model that training began with. If it has no ranking head, it is not
    evaluated: a random head ranks at random.
    """
    candidate_lists = build_candidate_lists(
        inputs,
        EVALUATED_SPLITS,
        top_k=params.top_k,
        max_queries=params.max_queries,
        seed=params.seed,
        include_raw=True,
    )
    corpus = scan_documents(inputs["corpus"]).collect()
    for line in list_caveats(candidate_lists, corpus.height, params):
        context.progress.log(line)
    # the base model's folder is an input: training.json names the model without its path
    rerankers = {"reranker": inputs["reranker"]}
    if has_head(inputs["base_model"]):
        rerankers["base_reranker"] = inputs["base_model"]
    pairs = candidate_lists.select_unique_pairs()
    reranker_scores = score_with_cross_encoders(
        gather_pair_texts(pairs, candidate_lists.queries, corpus),
        rerankers.values(),
        device=params.device,
        dtype=params.dtype,
        progress=context.progress,
    )
    columns = dict(zip(rerankers, reranker_scores, strict=True))
    columns["bm25"] = score_with_bm25(pairs, candidate_lists.queries, corpus)
    scores = pairs.with_columns(pl.Series(name, values) for name, values in columns.items())
    metrics, query_metrics = compute_metrics(candidate_lists, scores, params)
    metrics["base_has_new_head"] = "base_reranker" not in rerankers
    metrics["verdict"] = {"test": build_verdict(metrics)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_table(query_metrics, PER_QUERY_METRICS, out / "per_query.parquet")
    return summarise_metrics(metrics)


def compute_metrics(
    candidate_lists: CandidateLists, scores: pl.DataFrame, params: Params
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The content of metrics.json, and the metrics of each query.

    `scores` holds every pair of `candidate_lists` once: query_id, doc_id, and a column for each system except embedder
    and fused.
    """
    scored = candidate_lists.lists.join(scores, on=PAIR_COLUMNS, how="left", maintain_order="left")
    weight, selected_on = select_fusion_weight(scored.filter(pl.col("list") == "dev"), candidate_lists.qrels)
    scored = scored.with_columns(fused=fuse_scores(scored, weight))
    systems = [system for system in SYSTEM_LABELS if system in scored.columns]
    query_metrics = compute_query_metrics(
        scored, candidate_lists, systems, list_metric_names(params.top_k), _LISTS_BY_SPLIT
    )
    mean_metrics = {
        name: average_by_system(query_metrics.filter(pl.col("split") == name), systems)
        for names in _LISTS_BY_SPLIT.values()
        for name in names
    }
    metrics = {
        "dev": mean_metrics["dev"],
        "test": mean_metrics["test"],
        "raw": {"dev": mean_metrics["dev_raw"], "test": mean_metrics["test_raw"]},
        "positives_forced": {"dev": mean_metrics["dev_forced"], "test": mean_metrics["test_forced"]},
        "comparisons": {
            split: compare_to_embedder(
                query_metrics.filter(pl.col("split") == split),
                systems,
                bootstrap_samples=params.bootstrap_samples,
                seed=params.seed,
            )
            for split in EVALUATED_SPLITS
        },
        "fusion": {"weight": weight, "selected_on": selected_on},
        "candidate_lists": {
            split: _describe_lists(split, candidate_lists, mean_metrics[split], params) for split in EVALUATED_SPLITS
        },
        "collapse_reason": detect_score_collapse(
            scored.filter(pl.col("list").is_in(EVALUATED_SPLITS)).rename({"reranker": "score"}), ["list", "query_id"]
        ),
        "parameters": params.model_dump(exclude=params.fields_with_mark("unkeyed")),
    }
    return metrics, query_metrics


def list_caveats(candidate_lists: CandidateLists, corpus_size: int, params: Params) -> Iterator[str]:
    """What limits the metrics: samples, empty splits, few groups, short lists."""
    for split in EVALUATED_SPLITS:
        queries = candidate_lists.queries.filter(pl.col("split") == split)
        n_groups, n_available = queries["group"].n_unique(), candidate_lists.n_queries_available[split]
        if queries.is_empty():
            yield f"{split}: no query has a positive, so there is nothing to evaluate"
        elif queries.height < n_available:
            yield f"{split}: {queries.height} of {n_available} queries are evaluated (max_queries)"
        if 0 < n_groups < MIN_GROUPS:
            yield f"{split}: {n_groups} groups of queries are too few to distinguish a difference from chance"
    if "dev" not in candidate_lists.queries["split"]:
        yield f"there are no dev queries to choose the weight of the fusion by: it is {DEFAULT_FUSION_WEIGHT}"
    list_lengths = candidate_lists.lists.group_by("list", "query_id").len()["len"].to_numpy()
    if list_lengths.size and list_lengths.min() < min(params.top_k, corpus_size):
        yield (
            f"some lists hold {list_lengths.min()} documents, fewer than top_k = {params.top_k}: the search found no "
            "more ([search] top_k)"
        )


def summarise_metrics(metrics: Mapping[str, Any]) -> Summary:
    """The part of metrics.json for the terminal: metrics by split and system, differences, verdict, a collapse."""
    means = {
        split: {system: {name: values[name] for name in TABLE_METRICS} for system, values in metrics[split].items()}
        for split in EVALUATED_SPLITS
    }
    return {
        **means,
        "differences": {system: tests["nDCG@10"] for system, tests in metrics["comparisons"]["test"].items()},
        "n_queries": {split: metrics["candidate_lists"][split]["n_queries"] for split in EVALUATED_SPLITS},
        "fusion_weight": metrics["fusion"]["weight"],
        "raw": {
            split: {system: values["nDCG@10"] for system, values in metrics["raw"][split].items()}
            for split in EVALUATED_SPLITS
        },
        "n_near_positives": {
            split: metrics["candidate_lists"][split]["n_near_positives"] for split in EVALUATED_SPLITS
        },
        "verdict": metrics["verdict"],
        "collapse_reason": metrics["collapse_reason"],
    }


def _describe_lists(
    split: str, candidate_lists: CandidateLists, metrics_by_system: Mapping[str, Mapping[str, float]], params: Params
) -> dict[str, Any]:
    queries = candidate_lists.queries.filter(pl.col("split") == split)
    documents, raw_documents = (
        candidate_lists.lists.filter(pl.col("list") == name).height for name in (split, f"{split}_raw")
    )
    return {
        "n_queries": queries.height,
        "n_groups": queries["group"].n_unique(),
        "mean_documents_per_query": round(documents / queries.height, 6) if queries.height else 0,
        "recall_at_top_k": metrics_by_system["embedder"][f"R@{params.top_k}"] if metrics_by_system else None,
        "n_queries_available": candidate_lists.n_queries_available[split],
        "n_near_positives": raw_documents - documents,
    }
