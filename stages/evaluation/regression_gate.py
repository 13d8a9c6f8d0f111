"""The gate of `refresh`: is the new reranker significantly worse than the published one, on the new test split?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.device import Device
from stages.core.params import Params as Base
from stages.core.params import option
from stages.core.schemas import PER_QUERY, QUERIES, Summary, Tools, read_table, scan_documents
from stages.evaluation import bootstrap
from stages.evaluation.candidate_lists import fix_lists
from stages.evaluation.metrics import Judge, Metric
from stages.reranking.scoring import neural_scores, pair_texts


class Params(Base):
    """[refresh]"""

    measure: Metric = option(
        "nDCG@10", "a new reranker that is significantly worse by this metric on test is not published"
    )
    confidence: float = option(0.95, "how sure the gate must be that the new one is worse", gt=0.5, lt=1)
    samples: int = option(2000, "bootstrap samples behind the gate's interval", ge=100)
    seed: int = option(42, "seed of the gate's bootstrap", ge=0)
    device: Device = option("auto", "where the published reranker is scored: cpu, cuda:0, ...; auto", unkeyed=True)


VERSION = 1


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write gate.json: the published reranker in `inputs["old"]` against the new one's results in `per_query`.

    Both rank the same lists: those that `evaluate` made of test, by the parameters that stand in `metrics`. Questions
    that were in the published one's train or dev (`inputs["old_queries"]`) are left out: it has seen their answers.
    """
    shape = json.loads(inputs["metrics"].read_text(encoding="utf-8"))["parameters"]
    fixed = fix_lists(
        inputs, ["test"], top_k=shape["top_k"], max_queries=shape["max_queries"], seed=shape["seed"], forced=False
    )
    before = read_table(inputs["old_queries"], QUERIES, ["query_id", "split"])
    seen = before.filter(pl.col("split") != "test")["query_id"]
    left_out = fixed.queries["query_id"].is_in(seen.implode()).sum()
    if left_out:
        tools.progress.say(f"gate: {left_out} test questions were in train or dev before; they are not compared on")
    fixed = fixed.without(seen)
    is_new = (pl.col("split") == "test") & (pl.col("row") == "reranker") & (pl.col("metric") == params.measure)
    new = read_table(inputs["per_query"], PER_QUERY).filter(is_new & ~pl.col("query_id").is_in(seen.implode()))
    if fixed.queries.is_empty():
        verdict = compare(new, new.drop("group"), params)
    else:
        corpus = scan_documents(inputs["corpus"]).collect()
        texts = pair_texts(pairs := fixed.pairs(), fixed.queries, corpus)
        scored = neural_scores(
            texts, [inputs["old"]], device=params.device, dtype=shape["dtype"], seed=0, progress=tools.progress
        )
        ranked = fixed.lists.join(pairs.with_columns(score=pl.Series(next(scored))), on=["query_id", "doc_id"])
        verdict = compare(new, Judge(fixed.qrels, [params.measure])(ranked), params)
    (out / "gate.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return verdict


def compare(new: pl.DataFrame, old: pl.DataFrame, params: Params) -> dict[str, Any]:
    """The verdict on `new` (query_id, group, value) against `old` (query_id, value), of the same queries.

    "worse" or "better" where the interval of the mean difference new - old (paired bootstrap by group) leaves out 0,
    else "same": also with too few groups to tell. Raises `ValueError` where the queries differ.
    """
    if new["query_id"].sort().to_list() != old["query_id"].sort().to_list():
        raise ValueError("the new and the old reranker were not evaluated on the same queries")
    both = new.join(old.select("query_id", old="value"), on="query_id").sort("query_id")
    figures: dict[str, float | None] = dict.fromkeys(["new", "old", "difference", "low", "high", "p"])
    if both.height:
        values = both.select("value", "old").to_numpy()
        [test] = bootstrap.compare(
            values[:, :1] - values[:, 1:],
            both["group"].to_numpy(),
            samples=params.samples,
            seed=params.seed,
            confidence=params.confidence,
        )
        figures.update(new=float(values[:, 0].mean()), old=float(values[:, 1].mean()), **test._asdict())
    low, high = figures["low"], figures["high"]
    verdict = "worse" if high is not None and high < 0 else "better" if low is not None and low > 0 else "same"
    rounded = {name: None if value is None else round(value, 6) for name, value in figures.items()}
    return {"measure": params.measure, **rounded, "verdict": verdict, "queries": both.height}
