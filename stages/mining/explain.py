"""Show one query: its positives and its candidates, each with rank, score, verdict, reason and text.

A false negative is a candidate that answers the question though nobody said so; its probability is told in percent.
"""

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
from stages.evaluation.bootstrap import format_interval
from stages.mining.risk_budget import MAX_P_FALSE_NEGATIVE
from stages.mining.threshold_rules import THRESHOLD_RULES, RuleName, describe_rule

REASON_TEXTS = {
    "known_positive": "is one of the query's positives",
    "repeated_query": "is a positive of a query that restates this one",
    "same_text": "has the same text as a positive",
    "curated_negative": "was judged not relevant by people",
    "contains_answer": "contains a known answer of the query",
    "near_duplicate": "is nearly the same as a positive",
    "no_positive": "can't be judged: the query has no positive to measure from",
    "relabelled": "became a positive",
    "llm_judge": "may answer",
    "weighted": "is kept with a weight",
    "learned": "may answer",
    "window": "is outside the window of ranks",
    "kept": "passed every check",
}
"""What a reason of a verdict says of the candidate. `get_reason_text` knows the other rules too."""
_REASON_FIGURES = {
    "near_duplicate": "similarity {positive_similarity}",
    "relabelled": "{p}",
    "llm_judge": "{p}",
    "weighted": "{weight}, {p}",
    "learned": "{p}, {accepted}{likeness}",
    "window": "rank {rank}",
}
"""The figures of a candidate behind the reason."""
BENCHMARK_FALSE_NEGATIVE_RATE = "0 to 5.1 % (median 1.6 %)"
"""`prep bench negatives stackfaq bioasq policyqa medquad medquad_liveqa covid_faq --keep-positives one`."""
_NUMERIC_FIELDS = ("score", "threshold", "positive_similarity", "rank", "weight")
_MINED_SCHEMA = {"query_id": pl.String(), "pos_ids": pl.List(pl.String), "neg_ids": pl.List(pl.String)}


@dataclass(frozen=True)
class MaskSummary:
    """What all verdicts go by, and what came of it."""

    rule: RuleName
    number: float | None
    """The rule's."""
    window: tuple[int, int]
    """As `threshold_rules.passes_rule` takes it."""
    accepted: float
    """`max_false_negatives`."""
    expected: float | None
    """The share of false ones expected among all negatives of mined.jsonl; None where it is not known."""
    unfit: str | None
    """Why the rule is not learned, where it was asked for."""


def describe_query(
    query: Mapping[str, Any], rows: pl.DataFrame, negatives: list[str] | None, mask: MaskSummary
) -> list[str]:
    """What holds for a whole query, as `load_query_view` gives it with all its rows, in lines for a person."""
    line = f"mask {mask.rule}: {describe_rule(mask.rule, mask.number, mask.window)}"
    if mask.rule == "learned":
        known = "" if mask.expected is None else f", {format_probability(mask.expected)} are expected to be"
        line = (
            f"mask learned: at most {format_probability(mask.accepted)} of all negatives written may be false{known}. "
            "The higher a candidate's score, the more is accepted."
        )
    elif mask.unfit:
        line += f"; learned can't be trusted here: {mask.unfit}"
    return [line, f"mined.jsonl {_describe_mined_line(query, rows, negatives)}"]


def _describe_mined_line(query: Mapping[str, Any], rows: pl.DataFrame, negatives: list[str] | None) -> str:
    if query["split"] != "train":
        return f"holds nothing of this question, which is of {query['split']}"
    if negatives is None:
        return "is not written yet"
    if not negatives:
        missing_kind = "negative" if (rows["verdict"] == "positive").any() else "positive"
        return f"does not hold this question, which has no {missing_kind} that may be used"
    mined = rows.filter(pl.col("doc_id").is_in(negatives))
    # as `tally` counts: what people judged wrong is not false
    p = (
        mined.select(pl.when(reason="curated_negative").then(0.0).otherwise("p_false_negative"))
        .to_series()
        .drop_nulls()
    )
    mean = format_probability(float(np.mean(p.to_numpy().astype(np.float64)))) if len(p) else ""
    probability_note = f", false with a mean probability of {mean}" if len(p) == len(negatives) else ""
    return f"holds {len(negatives)} negative{'s' if len(negatives) > 1 else ''} of this question{probability_note}"


def explain_verdict(row: Mapping[str, Any], rule: RuleName) -> str:
    """A row of `load_query_view` in plain words with its figures, by the `rule` that was used; a positive that was not
    retrieved
    has rank None."""
    return "; ".join([_explain_reason(row, rule), *_describe_verifiers(row)])


def _explain_reason(row: Mapping[str, Any], rule: RuleName) -> str:
    reason, p = row["reason"], row.get("p_false_negative")
    figures = {name: "?" if row.get(name) is None else f"{row[name]:.4g}" for name in _NUMERIC_FIELDS}
    probability = _describe_probability(row)
    if reason == "kept":
        parts = [] if p is None else [probability]
        if rule == "learned":
            parts += [] if p is None else [_describe_risk_limit(row)]
        elif row.get("threshold") is not None:
            parts.insert(0, "score {score} is at most {threshold}".format(**figures))
        return REASON_TEXTS[reason] + (": " + ", ".join(parts) if parts else "")
    near = row.get("positive_similarity")
    similarity_note = "" if near is None else f"; similarity {near:.2f} with a positive"
    template = _REASON_FIGURES.get(reason, "score {score} is above {threshold}" if reason in THRESHOLD_RULES else "")
    details = template.format(**figures, p=probability, accepted=_describe_risk_limit(row), likeness=similarity_note)
    text = get_reason_text(reason) + (f": {details}" if details else "")
    return text + (", not among the candidates" if reason == "known_positive" and row.get("rank") is None else "")


def get_reason_text(reason: str) -> str:
    """What a reason of a verdict says of the candidate; of a rule on scores, that the candidate did not pass it."""
    return REASON_TEXTS.get(reason, f"may be a positive by the rule {reason}" if reason in THRESHOLD_RULES else reason)


def _describe_probability(row: Mapping[str, Any]) -> str:
    """p_false_negative, and what it was before somebody read the pair."""
    p, p_before = row.get("p_false_negative"), row.get("first_p")
    if p is None:
        return "a false negative with an unknown probability"
    verifiers = [
        who for who, said in (("teacher", "verifier_score"), ("judge", "llm_judge")) if row.get(said) is not None
    ]
    before_note = ""
    if verifiers and p_before is not None and format_probability(p_before) != format_probability(p):
        before_note = f" ({format_probability(p_before)} before the {' and the '.join(verifiers)})"
    return f"{format_probability(p)} likely a false negative{before_note}"


def _describe_risk_limit(row: Mapping[str, Any]) -> str:
    """What the learned mask accepts of a candidate."""
    if (row.get("p_false_negative") or 0.0) > MAX_P_FALSE_NEGATIVE:
        return f"nothing above {MAX_P_FALSE_NEGATIVE:.0%} accepted"
    limit = row.get("threshold")
    return (
        "" if limit is None else f"up to {format_probability(min(limit, MAX_P_FALSE_NEGATIVE))} accepted at its score"
    )


def _describe_verifiers(row: Mapping[str, Any]) -> list[str]:
    """What the teacher and the judge said."""
    parts = []
    if row.get("verifier_score") is not None and row["reason"] != "known_positive":
        best = row.get("verifier_positive_max")
        beside = "" if best is None else f", the best positive {best:.2f}"
        parts.append(f"the teacher scores it {row['verifier_score']:.2f}{beside}")
    if row.get("llm_judge") is not None:
        parts.append(f"the judge says that it {'answers' if row['llm_judge'] else 'does not answer'}")
    return parts


def format_probability(p: float) -> str:
    """A probability with two digits or so: "12.3%", "0.45%"."""
    if p < 0.0001:
        return "under 0.01%"
    return f"{p:.1%}" if p >= 0.01 else f"{p:.2%}"


def describe_estimate(estimate: Mapping[str, Any] | None) -> list[str]:
    """How it is known how many of the negatives are false, for a person; `estimate` is of the mask's summary."""
    if not estimate:
        return []
    if estimate["unreliable_reason"]:
        return [f"how many negatives are false can't be told on this table: {estimate['unreliable_reason']}"]
    if check := estimate["holdout_validation"]:
        return [
            f"checked on {check['n_queries']:,} questions of this table by hiding positives, each judged by a model "
            f"that did not see it: expected {check['expected']:.2%} false negatives, found "
            f"{format_observed_rate(check)} of "
            f"{check['n_negatives']:,} negatives",
            *_warn_above_accepted(check),
        ]
    return [
        "the estimate of false negatives is not checked on this table, where too few questions have several positives: "
        f"it is the shipped prior's alone, which gave {BENCHMARK_FALSE_NEGATIVE_RATE} where 2 % were accepted, on "
        f"collections new to it"
    ]


def format_observed_rate(check: Mapping[str, Any]) -> str:
    """The observed share of a check with its interval, and how many hidden positives it rests on."""
    if not check["n_held_out"]:
        return "none"
    interval = format_interval(check["low"], check["high"], ".2%")
    return f"{check['observed']:.2%} {interval}, {check['n_held_out']:,} hidden positives"


def _warn_above_accepted(check: Mapping[str, Any]) -> list[str]:
    """Where more was found than is accepted, and not by luck alone, that has to be said."""
    if check["max_false_negatives"] is None or check["low"] <= check["max_false_negatives"]:
        return []
    return [
        f"that is more than the {check['max_false_negatives']:.1%} that you accept: the estimate is too hopeful here. "
        "Lower max_false_negatives; `prep calibrate` shows what is found at each"
    ]


def find_query(queries: pl.LazyFrame, id_or_text: str) -> dict[str, Any]:
    """The query (query_id, query, split, group) whose id is `id_or_text`, else whose text is, else that contains it.

    Texts are compared by their loose form. Raises `InputError` where none is found, with the most similar ones, or
    where several are, with their ids.
    """
    table = queries.collect()
    by_id = table.filter(pl.col("query_id") == id_or_text)
    if len(by_id):
        return by_id.row(0, named=True)
    wanted_key = match_key(id_or_text)
    match_keys = pl.Series("form", [match_key(text) for text in table["query"]], dtype=pl.String)
    for hits in (
        table.filter(match_keys == wanted_key),
        table.filter(match_keys.str.contains(wanted_key, literal=True)),
    ):
        if len(hits) == 1:
            return hits.row(0, named=True)
        if len(hits) > 1:
            some = "\n".join(f"  {row['query_id']}  {row['query']}" for row in hits.head(10).iter_rows(named=True))
            raise InputError(f"{len(hits)} queries match {id_or_text!r}; name one by its id:\n{some}")
    near = difflib.get_close_matches(wanted_key, match_keys.to_list(), n=3, cutoff=0.5)
    close = table.filter(match_keys.is_in(near)).head(3)
    hint = "".join(f"\n  {row['query_id']}  {row['query']}" for row in close.iter_rows(named=True))
    raise InputError(f"no query has the id or the text {id_or_text!r}." + (f" Close to it:{hint}" if hint else ""))


def load_query_view(
    id_or_text: str, inputs: Mapping[str, Path], rule: RuleName
) -> tuple[dict[str, Any], pl.DataFrame, list[str] | None]:
    """The query found by id or text; its documents, positives first (best score first), then candidates by rank; and
    the ids of its negatives in mined.jsonl, None where that is not written.

    `inputs` holds the files queries, corpus, judged, verdicts, evidence and verified, and mined where it is written;
    `rule` is the mask that was used. Columns: doc_id, rank (null where not retrieved), source, score, verdict, reason,
    threshold, positive_similarity, p_false_negative, first_p (what it was before a teacher or a judge), weight,
    verifier_score, verifier_positive_max, judge, mined ("pos" or "neg" where mined.jsonl has it so), explanation, text.
    Raises as `find_query` does.
    """
    query = find_query(schemas.scan_table(inputs["queries"], schemas.QUERIES), id_or_text)
    is_query = pl.col("query_id") == query["query_id"]
    tables = ("qrels_scored", "verdicts", "features", "verifier_scores")
    qrels_scored, verdicts, candidate_features, verifier_scores = (
        schemas.scan_table(inputs[name], schemas.TABLES[name]).filter(is_query).collect() for name in tables
    )
    verdicts = verdicts.join(candidate_features.select("doc_id", first_p="p_false_negative"), on="doc_id", how="left")
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
    **dict.fromkeys(("threshold", "positive_similarity", "p_false_negative", "first_p", "weight"), pl.Float32),
    **dict.fromkeys(("verifier_score", "verifier_positive_max"), pl.Float32),
    "llm_judge": pl.Boolean,
}


def build_view_rows(
    qrels_scored: pl.DataFrame, verdicts: pl.DataFrame, texts: pl.DataFrame, rule: RuleName
) -> pl.DataFrame:
    """One query's rows of `qrels_scored` and `verdicts` (first_p and verifier_positive_max may be among their columns)
    with their `texts`, as `load_query_view` returns them, without mined."""
    not_retrieved = qrels_scored.filter(pl.col("relevance") > 0).join(verdicts, on="doc_id", how="anti")
    known = {"doc_id": pl.col("doc_id"), "score": pl.col("score"), "source": pl.lit("qrels")}
    known |= {"verdict": pl.lit("positive"), "reason": pl.lit("known_positive")}
    extra = not_retrieved.select(known.get(name, pl.lit(None, kind)).alias(name) for name, kind in _VIEW_SCHEMA.items())
    absent = {name: pl.lit(None, kind) for name, kind in _VIEW_SCHEMA.items() if name not in verdicts.columns}
    rows = pl.concat([verdicts.with_columns(**absent).select(*_VIEW_SCHEMA), extra])
    rows = rows.with_columns(
        pl.when(pl.col("source") == "curated_negative").then(None).otherwise(pl.col("rank")).alias("rank"),
        first=pl.col("verdict") == "positive",
    )
    by_score = pl.when("first").then(-pl.col("score")).otherwise(0.0)
    rows = rows.sort(~pl.col("first"), by_score, "rank", "doc_id", nulls_last=True).drop("first")
    explanations = pl.Series(
        "explanation", [explain_verdict(row, rule) for row in rows.iter_rows(named=True)], dtype=pl.String
    )
    return rows.with_columns(explanations).join(texts, on="doc_id", how="left", maintain_order="left")
