"""Step `retrievers`: BM25, the embedder and their fusion on train, dev and test. Nothing is trained for it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.core.context import Progress, StageContext, Summary
from stages.core.schemas import CORPUS, NEAR_DUPLICATES, PAIR_COLUMNS, QUERIES, SPLITS, read_table
from stages.embedding.lookup import VectorLookup, read_text_blocks
from stages.evaluation.candidate_lists import CandidateLists, build_candidate_lists, drop_near_positives
from stages.evaluation.comparison import average_by_system, compare_to_embedder, compute_query_metrics
from stages.evaluation.fusion import DEFAULT_FUSION_WEIGHT, fuse_scores, select_fusion_weight
from stages.evaluation.metrics import list_metric_names
from stages.evaluation.params import RetrieverParams
from stages.evaluation.tables import TABLE_METRICS
from stages.retrieval.bm25 import Bm25Search
from stages.retrieval.dense import DenseRetriever
from stages.statistics.bootstrap import format_interval

Params = RetrieverParams

RETRIEVERS = ("bm25", "embedder", "hybrid")
VIEWS = ("corpus", "lists")
"""How the systems are measured: corpus: each finds its documents in the whole corpus. lists: each ranks the embedder's
best `top_k` documents, as the rerankers of `evaluate` do."""
_ALL_CANDIDATES = 2**31 - 1
_BLOCK_DOCUMENTS = 8_192

VERSION = 2


def run(params: RetrieverParams, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write retrievers.json.

    The embedder's documents are the candidates of its search, BM25's are searched in the whole corpus to the same
    depth. The fusion ranks the documents of both, with both scores of each.
    """
    candidate_lists = build_candidate_lists(
        inputs,
        SPLITS,
        top_k=_ALL_CANDIDATES,
        max_queries=params.max_queries,
        seed=params.seed,
        include_forced=False,
    )
    pool = build_pool(candidate_lists, inputs, context)
    near_duplicates = read_table(inputs["near_duplicates"], NEAR_DUPLICATES)
    pool = drop_near_positives(pool, candidate_lists.qrels, near_duplicates)  # those that BM25 alone found, too
    found = {
        "corpus": compute_view(mask_documents_not_found(pool), candidate_lists, params),
        "lists": compute_view(pool.filter(pl.col("embedder_rank") <= params.top_k), candidate_lists, params),
        "queries": {split: _describe_queries(split, candidate_lists) for split in SPLITS},
        "depth": _get_depth(candidate_lists),
        "parameters": params.model_dump(),
    }
    (out / "retrievers.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summarise_retrievers(found)


def build_pool(candidate_lists: CandidateLists, inputs: Mapping[str, Path], context: StageContext) -> pl.DataFrame:
    """The documents that the embedder or BM25 found for each query, with the scores of both.

    list (the split), query_id, doc_id, relevance, embedder, bm25, embedder_rank, bm25_rank (null if that retriever did
    not find the document); the rows of a query are adjacent.
    """
    asked = candidate_lists.queries.select("query_id", "query", list="split")
    doc_ids = read_table(inputs["corpus"], CORPUS, ["doc_id"])["doc_id"]
    bm25 = Bm25Search(asked["query"].to_list(), _read_documents(inputs["corpus"], len(doc_ids), context.progress))
    results = bm25.search(np.arange(asked.height), max(_get_depth(candidate_lists), 1))
    by_bm25 = pl.DataFrame(
        {
            "query_id": asked["query_id"].gather(results.query_index),
            "doc_id": doc_ids.gather(results.document_index),
            "bm25_rank": results.rank,
        }
    )
    by_embedder = candidate_lists.lists.select(
        *PAIR_COLUMNS, embedder_rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("query_id")
    )
    pool = by_embedder.join(by_bm25, on=PAIR_COLUMNS, how="full", coalesce=True)
    rows = _find_rows(pool, asked.select("query_id"), doc_ids)
    pool = pool.with_columns(bm25=pl.Series(bm25.score_pairs(*rows)))
    all_queries = read_table(inputs["queries"], QUERIES, ["query_id", "query"])
    dense = DenseRetriever(
        all_queries, inputs["corpus"], VectorLookup(inputs, context.vectors_dir), _BLOCK_DOCUMENTS, context.executor
    )
    rows = _find_rows(pool, all_queries.select("query_id"), doc_ids)
    return (
        pool.with_columns(embedder=pl.Series(dense.score_pairs(*rows)))
        .join(asked.select("query_id", "list"), on="query_id")
        .join(candidate_lists.qrels, on=PAIR_COLUMNS, how="left")
        .with_columns(pl.col("relevance").fill_null(0))
        .sort("list", "query_id", "doc_id")
    )


def mask_documents_not_found(pool: pl.DataFrame) -> pl.DataFrame:
    """`pool` with the columns found_bm25 and found_embedder: a score only of what that retriever found itself."""
    return pool.with_columns(
        pl.when(pl.col(f"{system}_rank").is_not_null()).then(pl.col(system)).alias(f"found_{system}")
        for system in ("bm25", "embedder")
    )


def compute_view(pool: pl.DataFrame, candidate_lists: CandidateLists, params: RetrieverParams) -> dict[str, Any]:
    """Metrics by split and system, comparisons with the embedder, and the weight of BM25 in the fusion."""
    weight, selected_on = select_fusion_weight(pool.filter(pl.col("list") == "dev"), candidate_lists.qrels, "bm25")
    fused = pool.with_columns(hybrid=fuse_scores(pool, weight, "bm25"))
    found = {name.removeprefix("found_"): name for name in fused.columns if name.startswith("found_")}
    scored = fused.with_columns(pl.col(name).alias(system) for system, name in found.items())
    query_metrics = compute_query_metrics(
        scored, candidate_lists, RETRIEVERS, list_metric_names(params.top_k), {split: (split,) for split in SPLITS}
    )
    by_split = {split: query_metrics.filter(pl.col("split") == split) for split in SPLITS}
    return {
        **{split: average_by_system(values, RETRIEVERS) for split, values in by_split.items()},
        "comparisons": {
            split: compare_to_embedder(values, RETRIEVERS, bootstrap_samples=params.bootstrap_samples, seed=params.seed)
            for split, values in by_split.items()
        },
        "fusion": {"weight": weight, "selected_on": selected_on},
        "parameters": {"top_k": params.top_k},
    }


def summarise_retrievers(found: Mapping[str, Any]) -> Summary:
    """The part of retrievers.json for scripts: metrics, differences of nDCG@10 and weights, by view and split."""
    summary: Summary = {"n_queries": {split: found["queries"][split]["n_queries"] for split in SPLITS}}
    for view in VIEWS:
        summary[view] = {
            split: {
                system: {name: values[name] for name in TABLE_METRICS} for system, values in found[view][split].items()
            }
            for split in SPLITS
        }
        summary[view]["differences"] = {
            split: {system: tests["nDCG@10"] for system, tests in found[view]["comparisons"][split].items()}
            for split in SPLITS
        }
        summary[view]["fusion"] = found[view]["fusion"]
    return summary


def describe_retrievers(found: Mapping[str, Any]) -> str:
    """The figures of test over the whole corpus in one sentence; `found` is retrievers.json."""
    view = found["corpus"]
    if not view["test"]:
        return "There are no test queries to measure the retrievers on."
    figures = {system: f"{values['nDCG@10']:.3f}" for system, values in view["test"].items()}
    test, weight = view["comparisons"]["test"]["hybrid"]["nDCG@10"], view["fusion"]["weight"]
    interval = ", too few groups for an interval"
    if test["low"] is not None:
        interval = f" {format_interval(test['low'], test['high'], '+.3f')}"
    return (
        f"The retrievers alone, over the whole corpus, nDCG@10 on test: BM25 {figures['bm25']}, embedder "
        f"{figures['embedder']}, BM25 + embedder {figures['hybrid']} ({weight:.2f} of BM25; "
        f"{test['difference']:+.3f}{interval})."
    )


def list_retriever_caveats(found: Mapping[str, Any]) -> list[str]:
    """What limits the figures of retrievers.json: samples, no dev queries."""
    lines = []
    for split, counts in found["queries"].items():
        if 0 < counts["n_queries"] < counts["n_queries_available"]:
            lines.append(
                f"{split}: {counts['n_queries']:,} of {counts['n_queries_available']:,} queries are measured "
                "(max_queries)"
            )
    if found["corpus"]["fusion"]["selected_on"] is None:
        lines.append(f"there are no dev queries to choose the weight of BM25 by: it is {DEFAULT_FUSION_WEIGHT}")
    else:
        lines.append("the weight of BM25 is chosen on dev, so the fusion's figures on dev are too good")
    return lines


def _describe_queries(split: str, candidate_lists: CandidateLists) -> dict[str, int]:
    queries = candidate_lists.queries.filter(pl.col("split") == split)
    return {
        "n_queries": queries.height,
        "n_groups": queries["group"].n_unique(),
        "n_queries_available": candidate_lists.n_queries_available[split],
    }


def _get_depth(candidate_lists: CandidateLists) -> int:
    """The length of the longest list of the embedder; 0 without queries."""
    lengths = candidate_lists.lists.group_by("query_id").len()["len"]
    return int(lengths.max() or 0)  # type: ignore[arg-type]


def _read_documents(corpus: Path, n_documents: int, progress: Progress) -> Iterator[str]:
    n_read = 0
    for texts in read_text_blocks(corpus, "document"):
        yield from texts
        n_read += len(texts)
        progress.advance(n_read, n_documents, "documents")


def _find_rows(pairs: pl.DataFrame, query_ids: pl.DataFrame, doc_ids: pl.Series) -> tuple[Any, Any]:
    """The positions of each pair's query in `query_ids` and of its document in `doc_ids`: int64 [n] each."""
    joined = pairs.select(PAIR_COLUMNS)
    for frame, key in ((query_ids, "query_id"), (doc_ids.to_frame("doc_id"), "doc_id")):
        rows = frame.with_row_index(f"{key}_row").with_columns(pl.col(f"{key}_row").cast(pl.Int64))
        joined = joined.join(rows, on=key, how="left", maintain_order="left")
    return joined["query_id_row"].to_numpy(), joined["doc_id_row"].to_numpy()
