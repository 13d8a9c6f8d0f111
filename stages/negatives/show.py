"""Show one query: its positives and its candidates, each with rank, score, verdict, reason and text."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages import contracts
from stages.errors import InputError
from stages.negatives.rules import RULES
from stages.text import loose, normalise

_WORDS = {
    "known_positive": "is one of the query's positives",
    "repeated_question": "is a positive of a question that restates this one",
    "same_text": "has the same text as a positive",
    "curated": "was judged not relevant by people",
    "contains_answer": "contains a known answer of the query",
    "near_duplicate": "is nearly the same as a positive: similarity {positive_similarity}",
    "no_positive": "can't be judged: the query has no positive to measure from",
    "window": "has rank {rank}, outside the window",
    "judged": "may not be trained on: a false negative with probability {p_false_negative}",
    "teacher": "is taken for a positive by the teacher: it scores it {teacher_score}",
    "relabelled": "became a positive: a false negative with probability {p_false_negative}",
    "weighted": "is kept with the weight {weight}: a false negative with probability {p_false_negative}",
    "kept": "passed every check",
}

_FIGURES = (
    *("score", "threshold", "positive_similarity", "rank", "p_false_negative", "like_best", "weight"),
    "teacher_score",
)


def explain(row: Mapping[str, Any]) -> str:
    """A row of verdicts in plain words with its figures; positives that were not retrieved have rank None."""
    judge = {True: "; the judge says that it answers", False: "; the judge says that it does not answer"}
    return _decided(row) + judge.get(row.get("judge"), "")  # type: ignore[arg-type]


def _decided(row: Mapping[str, Any]) -> str:
    figures = {
        name: "?" if row.get(name) is None else f"{row[name]:.4g}"
        for name in (
            "score",
            "threshold",
            "positive_similarity",
            "rank",
            "p_false_negative",
            "like_best",
            "weight",
            "teacher_score",
        )
    }
    reason = row["reason"]
    if reason in _WORDS:
        words = _WORDS[reason].format(**figures)
        if reason == "known_positive" and row.get("rank") is None:
            words += ", not among the candidates"
        if reason == "kept" and row.get("p_false_negative") is not None:
            words += ": a false negative with probability {p_false_negative}".format(**figures)
        elif reason == "kept" and row.get("threshold") is not None:
            words += ": score {score} is at most {threshold}".format(**figures)
        return words
    if reason == "learned":
        return (
            "is a false negative with probability {p_false_negative}; at its score {score}, up to {threshold} would be "
            "accepted. It is {like_best} deviations more like a positive than two random documents are alike"
        ).format(**figures)
    if reason in RULES:
        return "may be a positive: score {score} is above {threshold} ({reason})".format(**figures, reason=reason)
    return str(reason)


def find_query(queries: pl.LazyFrame, wanted: str) -> dict[str, Any]:
    """The query (query_id, query, split, group) whose id is `wanted`, else whose text is, else that contains it.

    Texts are compared by their loose form. Raises `InputError` where none is found, with the most similar ones, or
    where several are, with their ids.
    """
    table = queries.collect()
    by_id = table.filter(pl.col("query_id") == wanted)
    if len(by_id):
        return by_id.row(0, named=True)
    form = loose(wanted) or normalise(wanted)
    forms = pl.Series("form", [loose(text) or normalise(text) for text in table["query"]], dtype=pl.String)
    for hits in (table.filter(forms == form), table.filter(forms.str.contains(form, literal=True))):
        if len(hits) == 1:
            return hits.row(0, named=True)
        if len(hits) > 1:
            some = "\n".join(f"  {row['query_id']}  {row['query']}" for row in hits.head(10).iter_rows(named=True))
            raise InputError(f"{len(hits)} queries match {wanted!r}; name one by its id:\n{some}")
    near = difflib.get_close_matches(form, forms.to_list(), n=3, cutoff=0.5)
    close = table.filter(forms.is_in(near)).head(3)
    hint = "".join(f"\n  {row['query_id']}  {row['query']}" for row in close.iter_rows(named=True))
    raise InputError(f"no query has the id or the text {wanted!r}." + (f" Close to it:{hint}" if hint else ""))


def show(wanted: str, inputs: Mapping[str, Path]) -> tuple[dict[str, Any], pl.DataFrame]:
    """The query found by id or text, and its documents: positives first (best score first), then candidates by rank.

    `inputs` holds the files queries, corpus, judged and verdicts. Columns: doc_id, rank (null where not retrieved),
    source, score, verdict, reason, threshold, positive_similarity, explanation, text. Raises as `find_query` does.
    """
    query = find_query(contracts.scan_table(inputs["queries"], contracts.QUERIES), wanted)
    mine = pl.col("query_id") == query["query_id"]
    judged = contracts.scan_table(inputs["judged"], contracts.JUDGED).filter(mine).collect()
    verdicts = contracts.scan_table(inputs["verdicts"], contracts.VERDICTS).filter(mine).collect()
    documents = pl.concat([judged["doc_id"], verdicts["doc_id"]]).unique().implode()
    corpus = contracts.scan_documents(inputs["corpus"])
    return query, arrange(judged, verdicts, corpus.filter(pl.col("doc_id").is_in(documents)).collect())


def arrange(judged: pl.DataFrame, verdicts: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """One query's rows of `judged` and `verdicts` with their `texts`, as `show` returns them."""
    unseen = judged.filter(pl.col("relevance") > 0).join(verdicts, on="doc_id", how="anti")
    columns = ["doc_id", "rank", "source", "score", "verdict", "reason", "threshold", "positive_similarity"]
    columns += ["p_false_negative", "like_best", "weight", "teacher_score", "judge"]
    extra = unseen.select(
        "doc_id",
        rank=pl.lit(None, pl.Int32),
        source=pl.lit("qrels"),
        score="score",
        verdict=pl.lit("positive"),
        reason=pl.lit("known_positive"),
        threshold=pl.lit(None, pl.Float32),
        positive_similarity=pl.lit(None, pl.Float32),
        p_false_negative=pl.lit(None, pl.Float32),
        like_best=pl.lit(None, pl.Float32),
        weight=pl.lit(None, pl.Float32),
        teacher_score=pl.lit(None, pl.Float32),
        judge=pl.lit(None, pl.Boolean),
    )
    rows = pl.concat([verdicts.select(columns), extra])
    rows = rows.with_columns(
        pl.when(pl.col("source") == "curated").then(None).otherwise(pl.col("rank")).alias("rank"),
        first=pl.col("verdict") == "positive",
    )
    by_score = pl.when("first").then(-pl.col("score")).otherwise(0.0)
    rows = rows.sort(~pl.col("first"), by_score, "rank", "doc_id", nulls_last=True).drop("first")
    words = pl.Series("explanation", [explain(row) for row in rows.iter_rows(named=True)], dtype=pl.String)
    return rows.with_columns(words).join(texts, on="doc_id", how="left", maintain_order="left")
