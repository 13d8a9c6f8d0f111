"""Stage `evaluate`: the trained reranker beside BM25, the embedder and its own base, on the same candidate lists."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.device import Device
from stages.core.params import Params as Base
from stages.core.params import option
from stages.core.schemas import PER_QUERY, Summary, Tools, scan_documents, write_table
from stages.evaluation.bootstrap import MIN_GROUPS, compare
from stages.evaluation.candidate_lists import Fixed, fix_lists
from stages.evaluation.fusion import DEFAULT_WEIGHT, choose_weight, fuse
from stages.evaluation.metrics import Judge, means, metric_names
from stages.reranking.cross_encoder import Dtype, has_head
from stages.reranking.scoring import lexical_scores, neural_scores, pair_texts

ROWS = ("bm25", "embedder", "base_reranker", "reranker", "fused")
SPLITS = ("dev", "test")
TESTED = ("nDCG@10", "MRR@10", "MAP@100", "Hit@1")


class Params(Base):
    """[evaluate]"""

    top_k: int = option(50, "rerank this many of the retriever's best documents for each question", ge=1)
    max_queries: int = option(
        300,
        "evaluate at most this many questions of dev and of test each, drawn by a hash of seed and question id; 0: all",
        ge=0,
    )
    samples: int = option(2000, "bootstrap samples behind each interval and p", ge=100)
    seed: int = option(42, "seed of the sample of questions and of the bootstrap", ge=0)
    dtype: Dtype = option(
        "auto", "bfloat16 or float32 inside the rerankers; auto: bfloat16 where the device is fast at it"
    )
    device: Device = option(
        "auto", "where the rerankers run: cpu, cuda:0, ...; auto: a GPU where there is one", unkeyed=True
    )


VERSION = 1


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write metrics.json and per_query.parquet for the reranker in `inputs`, and sum them up.

    base_reranker is `inputs["base"]`, the folder of the model that training began with, with the same fresh head
    where it needed one.
    """
    fixed = fix_lists(inputs, SPLITS, top_k=params.top_k, max_queries=params.max_queries, seed=params.seed)
    corpus = scan_documents(inputs["corpus"]).collect()
    for line in remarks(fixed, corpus.height, params):
        tools.progress.say(line)
    training = json.loads(inputs["training"].read_text(encoding="utf-8"))
    # where the base lies is [train]'s to say, so it comes as an input; training.json has its name and weights' digest
    base = inputs["base"]
    untrained_head = not has_head(base)
    if untrained_head:
        tools.progress.say("base_reranker is an encoder with a fresh random head: its figures are those of chance")

    pairs = fixed.pairs()
    reranker, base_reranker = neural_scores(
        pair_texts(pairs, fixed.queries, corpus),
        (inputs["reranker"], base),
        device=params.device,
        dtype=params.dtype,
        seed=training["seed"],
        progress=tools.progress,
    )
    bm25 = lexical_scores(pairs, fixed.queries, corpus)
    columns = {"bm25": bm25, "base_reranker": base_reranker, "reranker": reranker}
    scores = pairs.with_columns(pl.Series(name, values) for name, values in columns.items())
    metrics, values = evaluate(fixed, scores, params)
    metrics["untrained_head"] = untrained_head
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_table(values, PER_QUERY, out / "per_query.parquet")
    return summary(metrics)


def evaluate(fixed: Fixed, scores: pl.DataFrame, params: Params) -> tuple[dict[str, Any], pl.DataFrame]:
    """All figures of metrics.json (except what only the models know), and the per-query table behind them.

    `scores` holds every pair of `fixed` once: query_id, doc_id, bm25, base_reranker, reranker.
    """
    names = metric_names(params.top_k)
    table = fixed.lists.join(scores, on=["query_id", "doc_id"], how="left", maintain_order="left")
    weight, chosen_on = choose_weight(table.filter(pl.col("list") == "dev"), fixed.qrels)
    table = table.with_columns(fused=fuse(table, weight))
    values = query_values(table, fixed, names)
    rows: dict[str, dict[str, dict[str, float]]] = {
        f"{split}{suffix}": {
            row: _rounded(means(part))
            for row in ROWS
            if (part := values.filter((pl.col("split") == f"{split}{suffix}") & (pl.col("row") == row))).height
        }
        for split in SPLITS
        for suffix in ("", "_forced")
    }
    metrics = {
        "dev": rows["dev"],
        "test": rows["test"],
        "forced": {"dev": rows["dev_forced"], "test": rows["test_forced"]},
        "tests": {split: against_embedder(values.filter(pl.col("split") == split), params) for split in SPLITS},
        "fusion": {"weight": weight, "chosen_on": chosen_on},
        "lists": {split: _described(split, fixed, rows[split], params) for split in SPLITS},
        "collapse": collapse(table.filter(pl.col("list").is_in(SPLITS))),
        "parameters": params.model_dump(exclude=params.marked("unkeyed")),
    }
    return metrics, values


def query_values(table: pl.DataFrame, fixed: Fixed, names: Sequence[str]) -> pl.DataFrame:
    """PER_QUERY: each list's metrics of each row and query; `table` is the lists with one column a row of ROWS."""
    columns = dict.fromkeys(("split", "row", "query_id", "metric"), pl.String) | {"value": pl.Float64}
    parts = [pl.DataFrame(schema=columns)]
    for split in SPLITS:
        queries = fixed.queries.filter(pl.col("split") == split)
        if queries.is_empty():
            continue
        judge = Judge(fixed.qrels.join(queries, on="query_id", how="semi"), names)
        for name in (split, f"{split}_forced"):
            ranked = table.filter(pl.col("list") == name)
            for row in ROWS:
                found = judge(ranked.select("query_id", "doc_id", "relevance", score=row))
                parts.append(found.select(pl.lit(name).alias("split"), pl.lit(row).alias("row"), pl.all()))
    groups = fixed.queries.select("query_id", "group")
    return pl.concat(parts).join(groups, on="query_id", how="left", maintain_order="left").select(PER_QUERY.names)


def against_embedder(values: pl.DataFrame, params: Params) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paired bootstrap by group of every row against the embedder: row -> metric -> difference, low, high, p."""
    if values.is_empty():
        return {}
    wide = values.filter(pl.col("metric").is_in(TESTED)).pivot(
        "metric", index=["row", "query_id", "group"], values="value"
    )
    by_row = {row: wide.filter(pl.col("row") == row).sort("query_id") for row in ROWS}
    reference = by_row["embedder"].select(TESTED).to_numpy()
    group = by_row["embedder"]["group"].to_numpy()
    found = {}
    for row in ROWS:
        if row != "embedder":
            differences = by_row[row].select(TESTED).to_numpy() - reference
            compared = compare(differences, group, samples=params.samples, seed=params.seed)
            found[row] = {name: _rounded(one._asdict()) for name, one in zip(TESTED, compared, strict=True)}
    return found


def collapse(table: pl.DataFrame) -> str | None:
    """What is wrong with a reranker that can't tell documents apart, or None.

    `table` holds the lists with the column `reranker`. Collapsed means: a score is no number, the standard deviation
    within lists is below 1e-6 on average, or over 95 % of the neighbours in the rankings are tied.
    """
    keys = ["list", "query_id"]
    score = pl.col("reranker").cast(pl.Float64)
    table = table.filter(pl.len().over(keys) > 1).sort(*keys, "reranker")
    if table.is_empty():
        return None
    if not table["reranker"].is_finite().all():
        return "the reranker's scores are not all finite numbers: its training diverged"
    spread = table.group_by(keys, maintain_order=True).agg(score.std(ddof=0))["reranker"].to_numpy().mean()
    if spread < 1e-6:
        return f"the reranker gives all documents of a list the same score (mean standard deviation {spread:.1e})"
    tied = (table.select(score.diff().over(keys)).drop_nulls().to_numpy() == 0).mean()
    if tied > 0.95:
        return f"{tied:.1%} of neighbours in the reranker's rankings have the same score"
    return None


def remarks(fixed: Fixed, corpus_size: int, params: Params) -> Iterator[str]:
    """What a reader of the figures must know of: samples, empty splits, few groups, short lists."""
    for split in SPLITS:
        queries = fixed.queries.filter(pl.col("split") == split)
        groups = queries["group"].n_unique()
        if queries.is_empty():
            yield f"{split}: no question has a positive, so there is nothing to evaluate"
        elif queries.height < fixed.drawn_from[split]:
            yield f"{split}: {queries.height} of {fixed.drawn_from[split]} questions are evaluated (max_queries)"
        if 0 < groups < MIN_GROUPS:
            yield f"{split}: with {groups} groups of questions no difference can be told from luck"
    if "dev" not in fixed.queries["split"]:
        yield f"without dev the weight of the fusion is not chosen: it is {DEFAULT_WEIGHT}"
    lengths = fixed.lists.group_by("list", "query_id").len()["len"].to_numpy()
    if lengths.size and lengths.min() < min(params.top_k, corpus_size):
        yield f"some lists hold {lengths.min()} documents, not top_k = {params.top_k}: mined no deeper (depth)"


def summary(metrics: Mapping[str, Any]) -> Summary:
    """What a terminal shows of metrics.json: TESTED by split and row, test's differences, the collapse."""
    main = {
        split: {row: {name: found[name] for name in TESTED} for row, found in metrics[split].items()}
        for split in SPLITS
    }
    return {
        **main,
        "differences": {row: tests["nDCG@10"] for row, tests in metrics["tests"]["test"].items()},
        "queries": {split: metrics["lists"][split]["queries"] for split in SPLITS},
        "fusion_weight": metrics["fusion"]["weight"],
        "collapse": metrics["collapse"],
    }


def metrics_table(metrics: Mapping[str, Any], split: str = "test") -> list[list[str]]:
    """metrics.json's figures of one split for a terminal: a header, then a line a row; empty where there are none."""
    if not metrics[split]:
        return []
    names = [*TESTED, f"R@{metrics['parameters']['top_k']}"]
    table = [["", *names, "nDCG@10 against the embedder"]]
    for row, found in metrics[split].items():
        test = metrics["tests"][split].get(row, {}).get("nDCG@10")
        table.append([_LABELS[row].format(**metrics["fusion"]), *(f"{found[name]:.3f}" for name in names), _told(test)])
    return table


_LABELS = {
    "bm25": "BM25",
    "embedder": "embedder",
    "base_reranker": "base reranker",
    "reranker": "trained reranker",
    "fused": "fused, weight {weight:.2f}",
}


def _told(test: Mapping[str, float | None] | None) -> str:
    """`+0.083 [+0.051, +0.114] p = 0.002`."""
    if test is None:
        return ""
    if test["p"] is None:
        return f"{test['difference']:+.3f} (too few groups to test)"
    return f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}] p = {test['p']:.3f}"


def _described(split: str, fixed: Fixed, rows: Mapping[str, Mapping[str, float]], params: Params) -> dict[str, Any]:
    queries = fixed.queries.filter(pl.col("split") == split)
    documents = fixed.lists.filter(pl.col("list") == split).height
    return {
        "queries": queries.height,
        "groups": queries["group"].n_unique(),
        "documents_per_query": round(documents / queries.height, 6) if queries.height else 0,
        "recall_at_top_k": rows["embedder"][f"R@{params.top_k}"] if rows else None,
        "sampled_from": fixed.drawn_from[split],
    }


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(value, 6) for name, value in figures.items()}
