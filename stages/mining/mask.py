"""The mask step: decide for every candidate whether it may be a negative, and give the reason.

The first reason that applies counts (`REASON_PRECEDENCE` is this table as data):

| reason | verdict | applies if |
|---|---|---|
| known_positive | positive | the pair is a positive by id |
| repeated_query | ignored | the document is a positive of a paraphrase of the query, in any split |
| same_text | ignored | the document is a near duplicate, by its words, of such a positive |
| curated_negative | negative | people labelled it not relevant; it is added if it was not retrieved |
| contains_answer | ignored | the document contains a known answer of the query |
| near_duplicate | ignored | its vector is nearly that of a positive |
| no_positive | ignored | the rule measures from a positive, and the query has none |
| relabelled | positive | the rule excludes it, and its p_false_negative is high (`relabel = positive`) |
| llm_judge | ignored | the LLM judge finds it relevant |
| weighted | negative | the rule excludes it, and it is kept with a weight (`relabel = weight`) |
| the rule's name | ignored | the rule of `mask` excludes it |
| kept | negative | no other reason applies |

So a curated negative is ignored only if it contradicts a known positive; these are counted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.core.query_batches import collect_query_batch, iter_query_batches, map_query_batches
from stages.mining import risk_budget, threshold_rules
from stages.mining.holdout_validation import validate_on_holdout
from stages.mining.params import Params as Params
from stages.mining.risk_budget import RiskSolution
from stages.mining.threshold_rules import RuleName

VERSION = 8

NEGATIVE, POSITIVE, IGNORED = "negative", "positive", "ignored"
RULE_PLACEHOLDER = "rule"
"""Stands for the rule's own name in `REASON_PRECEDENCE`."""

REASON_PRECEDENCE = (
    ("known_positive", POSITIVE),
    ("repeated_query", IGNORED),
    ("same_text", IGNORED),
    ("curated_negative", NEGATIVE),
    ("contains_answer", IGNORED),
    ("near_duplicate", IGNORED),
    ("no_positive", IGNORED),
    ("relabelled", POSITIVE),
    ("llm_judge", IGNORED),
    ("weighted", NEGATIVE),
    (RULE_PLACEHOLDER, IGNORED),
)

VERIFIER_COLUMNS = {"verifier_score": pl.Float32, "llm_judge": pl.Boolean}
"""The results of the verifier and the LLM judge."""

MASK_ROWS_PER_BLOCK = 500_000
"""Pairs in memory at once; does not change the result."""


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write verdicts.parquet: a verdict and a reason for each candidate and curated negative, best score first."""
    verifier_scores = schemas.scan_table(inputs["verifier_scores"], schemas.VERIFIER_SCORES)
    candidate_features = apply_verifier_scores(
        schemas.scan_table(inputs["features"], schemas.CANDIDATE_FEATURES), verifier_scores
    )
    qrels_scored = schemas.scan_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "split"]).sort("query_id")
    estimator = json.loads(inputs["estimator"].read_text(encoding="utf-8"))
    if estimator["source"] is None and (params.mask == "learned" or params.relabel != "no"):
        setting = "mask = learned" if params.mask == "learned" else f"relabel = {params.relabel}"
        raise InputError(
            f"{setting} needs the estimate, which estimate_false_negatives = false switches off: remove one of them"
        )
    rule = params
    if params.mask == "learned" and estimator["unreliable_reason"]:
        context.progress.log(
            f"the learned mask is not reliable on this table, so perc is used: {estimator['unreliable_reason']}"
        )
        rule = params.model_copy(update={"mask": "perc", "threshold": None})
    if params.relabel != "no" and estimator["unreliable_reason"]:
        context.progress.log(f"relabel = {params.relabel} has no effect, because the estimate is not reliable here")
    blocks = list(
        iter_query_batches(queries["query_id"], pq.read_metadata(inputs["features"]).num_rows, MASK_ROWS_PER_BLOCK)
    )
    solution = (
        risk_budget.solve_risk_budget(rule, candidate_features, queries, blocks) if rule.mask == "learned" else None
    )

    def assign_block(block: pl.Series) -> tuple[pa.Table, Counter[str], float]:
        verdicts = assign_verdicts(
            rule, collect_query_batch(candidate_features, block), collect_query_batch(qrels_scored, block), solution
        )
        # logged if relabel = positive relabels nothing
        max_p = find_max_ignored_p(verdicts, rule.mask) if params.relabel == "positive" else 0.0
        return (
            schemas.to_arrow_table(verdicts.drop("contradicted"), schemas.VERDICTS),
            count_verdicts(verdicts),
            max_p,
        )

    counts: Counter[str] = Counter()
    max_ignored_p = 0.0
    with schemas.open_parquet_writer(out / "verdicts.parquet", schemas.VERDICTS) as writer:
        for verdicts, block_counts, max_p in map_query_batches(assign_block, blocks):
            writer.write_table(verdicts)
            counts += block_counts
            max_ignored_p = max(max_ignored_p, max_p)
            context.progress.advance(min(counts["queries"], len(queries)), len(queries), "queries")
    summary = summarise_verdicts(rule, counts, len(queries))
    if estimator["source"]:
        holdout_candidates = schemas.read_table(inputs["holdout_verified"], schemas.HOLDOUT_CANDIDATES)
        summary["estimate"] = {name: value for name, value in estimator.items() if name != "models"} | {
            "max_false_negatives": rule.max_false_negatives if solution else None,
            "lambda": solution.lambda_ if solution else None,
            "max_p": round(solution.max_p, 5) if solution else None,
            "holdout_validation": validate_on_holdout(rule, solution, holdout_candidates),
        }
    if params.relabel == "positive" and not estimator["unreliable_reason"] and not counts["relabelled"]:
        context.progress.log(explain_no_relabels(params.relabel_min_probability, max_ignored_p))
    for line in list_warnings(summary):
        context.progress.log(line)
    return summary


def apply_verifier_scores(candidate_features: pl.LazyFrame, verifier_scores: pl.LazyFrame) -> pl.LazyFrame:
    """`candidate_features` with `VERIFIER_COLUMNS`, and with the p_false_negative that the verify step updated."""
    if verifier_scores.head(1).collect().is_empty():  # a join with an empty table would be slow
        return candidate_features.with_columns(
            pl.lit(None, kind).alias(name) for name, kind in VERIFIER_COLUMNS.items()
        )
    updates = verifier_scores.select(*schemas.PAIR_COLUMNS, *VERIFIER_COLUMNS, new_p="p_false_negative")
    rows = candidate_features.join(updates, on=schemas.PAIR_COLUMNS, how="left", maintain_order="left")
    return rows.with_columns(p_false_negative=pl.coalesce("new_p", "p_false_negative")).drop("new_p")


def assign_verdicts(
    params: Params, rows: pl.DataFrame, qrels_scored: pl.DataFrame, solution: RiskSolution | None = None
) -> pl.DataFrame:
    """The verdicts on `rows` (all CANDIDATE_FEATURES of some queries), with the columns of VERDICTS and `contradicted`.

    `qrels_scored` holds all QRELS_SCORED of these queries. The learned mask needs `solution`. `contradicted` marks
    curated negatives that contradict a known positive.
    """
    rows = threshold_rules.apply_rule(params.mask, params.effective_threshold, params.rank_window, rows, qrels_scored)
    if solution:
        candidates, cells, is_eligible = risk_budget.pad_eligible_candidates(params, rows)
        threshold = np.full(len(rows), np.nan, np.float32)
        threshold[is_eligible] = solution.compute_limits(candidates)[cells]
        max_p = pl.lit(risk_budget.MAX_P_FALSE_NEGATIVE, pl.Float32)
        rows = rows.with_columns(pl.Series("threshold", threshold).fill_nan(None)).with_columns(
            threshold=pl.when(pl.col("p_false_negative") > max_p).then(max_p).otherwise("threshold")
        )
        rows = rows.with_columns(rule=(pl.col("p_false_negative") > pl.col("threshold")).fill_null(False))
    p = pl.col("p_false_negative")
    is_llm_positive = pl.col("llm_judge").fill_null(False)
    rows = rows.with_columns(
        known_positive=pl.col("positive_kind") == "own",
        repeated_query=pl.col("positive_kind") == "paraphrase",
        near_duplicate=pl.col("positive_similarity") >= pl.lit(params.near_duplicate_similarity, pl.Float32),
        relabelled=pl.lit(params.relabel == "positive")
        & (pl.col("rule") | is_llm_positive)
        & (p >= params.relabel_min_probability),
        weighted=pl.lit(params.relabel == "weight") & pl.col("rule") & p.is_not_null(),
    )
    lines = pl.DataFrame([*REASON_PRECEDENCE, ("kept", NEGATIVE)], schema=["reason", "verdict"], orient="row")
    first = (pl.when(flag).then(pl.lit(line, pl.UInt8)) for line, (flag, _) in enumerate(REASON_PRECEDENCE))
    line = rows.select(pl.coalesce(*first, pl.lit(len(REASON_PRECEDENCE), pl.UInt8))).to_series()
    reason = lines["reason"].replace(RULE_PLACEHOLDER, params.mask)
    verdicts = rows.with_columns(verdict=lines["verdict"].gather(line), reason=reason.gather(line))
    return verdicts.with_columns(
        weight=pl.when(pl.col("reason") == "weighted").then(1 - p).cast(pl.Float32),
        contradicted=pl.col("curated_negative").fill_null(False) & (pl.col("verdict") == IGNORED),
    ).select(*schemas.VERDICTS.names, "contradicted")


def count_verdicts(verdicts: pl.DataFrame) -> Counter[str]:
    """The counts of a block."""
    counts: Counter[str] = Counter(queries=_count_queries(verdicts), rows=len(verdicts))
    for reason, rows in verdicts.group_by("reason").len().iter_rows():
        counts[reason] = rows
    counts["added"] = verdicts.filter(pl.col("source") == "curated_negative").height
    counts["contradicted"] = int(verdicts["contradicted"].sum())
    counts["filled"] = _count_queries(verdicts.filter(pl.col("verdict") == NEGATIVE))
    counts["without_positive"] = _count_queries(verdicts.filter(pl.col("reason") == "no_positive"))
    return counts


def _count_queries(rows: pl.DataFrame) -> int:
    """The number of queries in `rows`, which are sorted by query."""
    return len(rows["query_id"].rle())


def find_max_ignored_p(verdicts: pl.DataFrame, rule: RuleName) -> float:
    """The highest p_false_negative among the candidates that the rule or the LLM judge excluded; 0 if none."""
    ignored = verdicts.filter(pl.col("verdict") == IGNORED, pl.col("reason").is_in([rule, "llm_judge"]))
    return float(ignored.select(pl.col("p_false_negative").max().fill_null(0.0)).item())


def explain_no_relabels(min_probability: float, max_ignored_p: float) -> str:
    """Why relabel = positive made no positive; `max_ignored_p` is the result of `find_max_ignored_p`."""
    if not max_ignored_p:
        return "relabel = positive relabels nothing: no candidate with an estimate is excluded"
    return (
        f"relabel = positive relabels nothing: the highest probability of an excluded candidate is "
        f"{max_ignored_p:.3f}, below relabel_min_probability = {min_probability}"
    )


def summarise_verdicts(params: Params, counts: Mapping[str, int], n_queries: int) -> Summary:
    """The summary of the mask step; verdicts: verdict -> reason -> number of candidates."""
    order = [
        *((params.mask if flag == RULE_PLACEHOLDER else flag, verdict) for flag, verdict in REASON_PRECEDENCE),
        ("kept", NEGATIVE),
    ]
    return {
        "rule": params.mask,
        "threshold": params.effective_threshold,
        "queries": n_queries,
        "candidates": counts["rows"] - counts["added"],
        "verdicts": {
            verdict: {reason: counts[reason] for reason, of_reason in order if of_reason == verdict and counts[reason]}
            for verdict in (NEGATIVE, POSITIVE, IGNORED)
        },
        "curated_negatives_added": counts["added"],
        "curated_negatives_contradicting": counts["contradicted"],
        "queries_without_positive": counts["without_positive"],
        "queries_without_negative": n_queries - counts["filled"],
    }


def list_warnings(summary: Summary) -> list[str]:
    """The lines of the log about the summary."""
    lines = []
    if n := summary["curated_negatives_contradicting"]:
        lines.append(f"{n} curated negatives are ignored: a known positive has the same text, or a paraphrase has them")
    if n := summary["queries_without_positive"]:
        lines.append(f"{n} queries get no negatives: they have no positive, and the rule {summary['rule']} needs one")
    return lines
