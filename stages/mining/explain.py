"""Explain one query: its positives and candidates, each with rank, score, verdict, reason and text."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.errors import InputError
from stages.core.text import match_key
from stages.mining.risk_budget import MAX_P_FALSE_NEGATIVE
from stages.mining.threshold_rules import THRESHOLD_RULES, RuleName, describe_rule
from stages.statistics.bootstrap import format_interval

REASON_TEXTS = {
    "known_positive": "is one of the query's positives",
    "repeated_query": "is a positive of a paraphrase of the query",
    "same_text": "is the same as a positive, but for punctuation, a greeting or a footer",
    "curated_negative": "was labelled not relevant by people",
    "contains_answer": "contains a known answer of the query",
    "near_duplicate": "is nearly the same as a positive",
    "no_positive": "is excluded: the query has no positive, which the rule needs",
    "relabelled": "became a positive",
    "llm_judge": "may answer",
    "weighted": "is kept with a weight",
    "learned": "may answer",
    "window": "is outside the window of ranks",
    "kept": "passed every check",
}
"""A reason in words; `get_reason_text` adds the other rules."""
_REASON_DETAILS = {
    "near_duplicate": "similarity {positive_similarity}",
    "relabelled": "{p}",
    "llm_judge": "{p}",
    "weighted": "{weight}, {p}",
    "learned": "{p}, {limit}{similarity}",
    "window": "rank {rank}",
}
"""The numbers behind a reason."""
BENCHMARK_FALSE_NEGATIVE_RATE = "0 to 5.1 % on its own collections, each left out, and up to 31 % on others"
"""`prep bench negatives stackfaq bioasq policyqa medquad medquad_liveqa covid_faq --keep-positives one`."""
_NUMERIC_FIELDS = ("score", "threshold", "positive_similarity", "rank", "weight")
_MINED_SCHEMA = {"query_id": pl.String(), "pos_ids": pl.List(pl.String), "neg_ids": pl.List(pl.String)}


@dataclass(frozen=True)
class MaskSummary:
    """The rule of all verdicts, and the share of false negatives."""

    rule: RuleName
    threshold: float | None
    window: tuple[int, int]
    max_false_negatives: float
    expected: float | None
    """The expected share of false negatives in mined.jsonl; None if it is not known."""
    unreliable_reason: str | None
    """Why the learned mask was set but not used; None otherwise."""


def describe_query(
    query: Mapping[str, Any], rows: pl.DataFrame, negatives: list[str] | None, mask: MaskSummary
) -> list[str]:
    """The mask, and what mined.jsonl holds of a query of `load_query_view`."""
    line = f"mask {mask.rule}: {describe_rule(mask.rule, mask.threshold, mask.window)}"
    if mask.rule == "learned":
        expected = "" if mask.expected is None else f", {format_probability(mask.expected)} are expected to be"
        line = (
            f"mask learned: at most {format_probability(mask.max_false_negatives)} of all negatives may be "
            f"false{expected}. The higher a candidate's score, the higher the accepted probability."
        )
    elif mask.unreliable_reason:
        line += f"; the learned mask is not reliable here: {mask.unreliable_reason}"
    return [line, f"mined.jsonl {_describe_mined_line(query, rows, negatives)}"]


def _describe_mined_line(query: Mapping[str, Any], rows: pl.DataFrame, negatives: list[str] | None) -> str:
    if query["split"] != "train":
        return f"has no line of this question, which is in the {query['split']} split"
    if negatives is None:
        return "is not written yet"
    if not negatives:
        missing_kind = "negative" if (rows["verdict"] == "positive").any() else "positive"
        return f"has no line of this question, which has no usable {missing_kind}"
    mined = rows.filter(pl.col("doc_id").is_in(negatives))
    # as in `sampling.statistics`, a curated negative is not false
    p = (
        mined.select(pl.when(reason="curated_negative").then(0.0).otherwise("p_false_negative"))
        .to_series()
        .drop_nulls()
    )
    mean = format_probability(float(np.mean(p.to_numpy().astype(np.float64)))) if len(p) else ""
    probability_note = f", false with a mean probability of {mean}" if len(p) == len(negatives) else ""
    return f"has {len(negatives)} negative{'s' if len(negatives) > 1 else ''} of this question{probability_note}"


def explain_verdict(row: Mapping[str, Any], rule: RuleName) -> str:
    """The verdict on a row of `load_query_view` in words, under the mask `rule`."""
    return "; ".join([_explain_reason(row, rule), *_describe_verifiers(row)])


def _explain_reason(row: Mapping[str, Any], rule: RuleName) -> str:
    reason, p = row["reason"], row.get("p_false_negative")
    numbers = {name: "?" if row.get(name) is None else f"{row[name]:.4g}" for name in _NUMERIC_FIELDS}
    probability = _describe_probability(row)
    if reason == "kept":
        parts = [] if p is None else [probability]
        if rule == "learned":
            parts += [] if p is None else [_describe_risk_limit(row)]
        elif row.get("threshold") is not None:
            parts.insert(0, "score {score} is at most {threshold}".format(**numbers))
        return REASON_TEXTS[reason] + (": " + ", ".join(parts) if parts else "")
    similarity = row.get("positive_similarity")
    similarity_note = "" if similarity is None else f"; similarity {similarity:.2f} with a positive"
    template = _REASON_DETAILS.get(reason, "score {score} is above {threshold}" if reason in THRESHOLD_RULES else "")
    details = template.format(**numbers, p=probability, limit=_describe_risk_limit(row), similarity=similarity_note)
    text = get_reason_text(reason) + (f": {details}" if details else "")
    return text + (", not among the candidates" if reason == "known_positive" and row.get("rank") is None else "")


def get_reason_text(reason: str) -> str:
    """A reason of a verdict in words."""
    return REASON_TEXTS.get(reason, f"may be a positive by the rule {reason}" if reason in THRESHOLD_RULES else reason)


def _describe_probability(row: Mapping[str, Any]) -> str:
    """p_false_negative, and its value before the verifier or the LLM judge."""
    p, estimated_p = row.get("p_false_negative"), row.get("estimated_p")
    if p is None:
        return "a false negative with an unknown probability"
    columns = {"verifier": "verifier_score", "LLM judge": "llm_judge"}
    verifiers = [name for name, column in columns.items() if row.get(column) is not None]
    before_note = ""
    if verifiers and estimated_p is not None and format_probability(estimated_p) != format_probability(p):
        before_note = f" ({format_probability(estimated_p)} before the {' and the '.join(verifiers)})"
    return f"{format_probability(p)} likely a false negative{before_note}"


def _describe_risk_limit(row: Mapping[str, Any]) -> str:
    """The p_false_negative that the learned mask accepts for a candidate."""
    if (row.get("p_false_negative") or 0.0) > MAX_P_FALSE_NEGATIVE:
        return f"nothing above {MAX_P_FALSE_NEGATIVE:.0%} accepted"
    limit = row.get("threshold")
    return (
        "" if limit is None else f"up to {format_probability(min(limit, MAX_P_FALSE_NEGATIVE))} accepted at its score"
    )


def _describe_verifiers(row: Mapping[str, Any]) -> list[str]:
    parts = []
    if row.get("verifier_score") is not None and row["reason"] != "known_positive":
        best = row.get("verifier_positive_max")
        best_note = "" if best is None else f", best positive {best:.2f}"
        parts.append(f"verifier score {row['verifier_score']:.2f}{best_note}")
    if row.get("llm_judge") is not None:
        parts.append(f"LLM judge: {'answers' if row['llm_judge'] else 'does not answer'}")
    return parts


def format_probability(p: float) -> str:
    """A probability in percent: "12.3%", "0.45%"."""
    if p < 0.0001:
        return "under 0.01%"
    return f"{p:.1%}" if p >= 0.01 else f"{p:.2%}"


def describe_estimate(estimate: Mapping[str, Any] | None) -> list[str]:
    """How reliable the estimated share of false negatives is, in words; `estimate` is that of the mask's summary."""
    if not estimate:
        return []
    if estimate["unreliable_reason"]:
        return [f"the share of false negatives is not known on this table: {estimate['unreliable_reason']}"]
    if validation := estimate["holdout_validation"]:
        return [
            f"validated on held-out positives of {validation['n_queries']:,} questions of this table: expected "
            f"{validation['expected']:.2%} false negatives, found {format_observed_rate(validation)} of "
            f"{validation['n_negatives']:,} negatives",
            *_warn_above_accepted(validation),
        ]
    return [
        "the share of false negatives is not validated on this table: too few questions have several positives. "
        f"With 2 % accepted, the pretrained model alone gave {BENCHMARK_FALSE_NEGATIVE_RATE}"
    ]


def format_observed_rate(validation: Mapping[str, Any]) -> str:
    """The observed share of false negatives with its interval, and the number of held-out positives behind it."""
    if not validation["n_held_out"]:
        return "none"
    interval = format_interval(validation["low"], validation["high"], ".2%")
    return f"{validation['observed']:.2%} {interval}, {validation['n_held_out']:,} held-out positives"


def _warn_above_accepted(validation: Mapping[str, Any]) -> list[str]:
    """A warning if significantly more false negatives were found than are accepted."""
    limit = validation["max_false_negatives"]
    if limit is None or validation["low"] <= limit:
        return []
    return [
        f"that is more than max_false_negatives = {limit:.1%}: the estimate is too low here. Lower "
        "max_false_negatives; `prep calibrate` shows the share that is found at each value"
    ]


def find_query(queries: pl.LazyFrame, id_or_text: str) -> dict[str, Any]:
    """The query with the id `id_or_text`, or else with that text, or else with a text that contains it.

    Texts are compared by their match keys. Raises `InputError` if no query is found, or several.
    """
    table = queries.collect()
    by_id = table.filter(pl.col("query_id") == id_or_text)
    if len(by_id):
        return by_id.row(0, named=True)
    key = match_key(id_or_text)
    match_keys = pl.Series([match_key(text) for text in table["query"]], dtype=pl.String)
    for hits in (table.filter(match_keys == key), table.filter(match_keys.str.contains(key, literal=True))):
        if len(hits) == 1:
            return hits.row(0, named=True)
        if len(hits) > 1:
            listing = "\n".join(f"  {row['query_id']}  {row['query']}" for row in hits.head(10).iter_rows(named=True))
            raise InputError(f"{len(hits)} queries match {id_or_text!r}; use one of these ids:\n{listing}")
    similar_keys = difflib.get_close_matches(key, match_keys.to_list(), n=3, cutoff=0.5)
    similar = table.filter(match_keys.is_in(similar_keys)).head(3)
    hint = "".join(f"\n  {row['query_id']}  {row['query']}" for row in similar.iter_rows(named=True))
    raise InputError(f"no query has the id or the text {id_or_text!r}." + (f" Similar ones:{hint}" if hint else ""))


def load_query_view(
    id_or_text: str, inputs: Mapping[str, Path], rule: RuleName
) -> tuple[dict[str, Any], pl.DataFrame, list[str] | None]:
    """The query of `find_query`, its documents, and the ids of its negatives in mined.jsonl (None if not written).

    Positives come first, by falling score, then candidates by rank. Columns: those of `_VIEW_SCHEMA`, explanation, text
    and mined ("pos" or "neg" if the document is in mined.jsonl). rank is null if the document was not retrieved;
    estimated_p is the p_false_negative before verifier and LLM judge. `inputs` are files: queries, corpus,
    qrels_scored, verdicts, features, verifier_scores and, if it is written, mined. `rule` is the mask that was used.
    """
    query = find_query(schemas.scan_table(inputs["queries"], schemas.QUERIES), id_or_text)
    is_query = pl.col("query_id") == query["query_id"]
    tables = ("qrels_scored", "verdicts", "features", "verifier_scores")
    qrels_scored, verdicts, candidate_features, verifier_scores = (
        schemas.scan_table(inputs[name], schemas.TABLES[name]).filter(is_query).collect() for name in tables
    )
    verdicts = verdicts.join(
        candidate_features.select("doc_id", estimated_p="p_false_negative"), on="doc_id", how="left"
    )
    verdicts = verdicts.join(verifier_scores.select("doc_id", "verifier_positive_max"), on="doc_id", how="left")
    documents = pl.concat([qrels_scored["doc_id"], verdicts["doc_id"]]).unique().implode()
    texts = schemas.scan_documents(inputs["corpus"]).filter(pl.col("doc_id").is_in(documents)).collect()
    rows = build_view_rows(qrels_scored, verdicts, texts, rule)
    lines = pl.DataFrame(schema=_MINED_SCHEMA)
    if "mined" in inputs:
        lines = pl.scan_ndjson(inputs["mined"], schema=_MINED_SCHEMA).filter(is_query).collect()
    pos, neg = (lines[mined_as].explode().drop_nulls().unique().to_list() for mined_as in ("pos_ids", "neg_ids"))
    mined_as = (
        pl.when(pl.col("doc_id").is_in(pos)).then(pl.lit("pos")).when(pl.col("doc_id").is_in(neg)).then(pl.lit("neg"))
    )
    return query, rows.with_columns(mined=mined_as), neg if "mined" in inputs else None


_VIEW_SCHEMA = {
    "doc_id": pl.String,
    "rank": pl.Int32,
    "source": pl.String,
    "score": pl.Float32,
    "verdict": pl.String,
    "reason": pl.String,
    **dict.fromkeys(("threshold", "positive_similarity", "p_false_negative", "estimated_p", "weight"), pl.Float32),
    **dict.fromkeys(("verifier_score", "verifier_positive_max"), pl.Float32),
    "llm_judge": pl.Boolean,
}


def build_view_rows(
    qrels_scored: pl.DataFrame, verdicts: pl.DataFrame, texts: pl.DataFrame, rule: RuleName
) -> pl.DataFrame:
    """The documents of one query for `load_query_view`, without the column mined."""
    not_retrieved = qrels_scored.filter(pl.col("relevance") > 0).join(verdicts, on="doc_id", how="anti")
    not_retrieved = not_retrieved.select(
        "doc_id", "score", source=pl.lit("qrels"), verdict=pl.lit("positive"), reason=pl.lit("known_positive")
    )
    rows = pl.concat([verdicts, not_retrieved], how="diagonal")
    absent = {name: pl.lit(None, kind) for name, kind in _VIEW_SCHEMA.items() if name not in rows.columns}
    rows = rows.with_columns(**absent).select(*_VIEW_SCHEMA)
    rows = rows.with_columns(
        pl.when(pl.col("source") == "curated_negative").then(None).otherwise(pl.col("rank")).alias("rank"),
        is_positive=pl.col("verdict") == "positive",
    )
    by_score = pl.when("is_positive").then(-pl.col("score")).otherwise(0.0)
    rows = rows.sort(~pl.col("is_positive"), by_score, "rank", "doc_id", nulls_last=True).drop("is_positive")
    explanations = pl.Series(
        "explanation", [explain_verdict(row, rule) for row in rows.iter_rows(named=True)], dtype=pl.String
    )
    return rows.with_columns(explanations).join(texts, on="doc_id", how="left", maintain_order="left")
