"""What is already known about a candidate without any score: positives in disguise, and documents with the answer."""

import re
import unicodedata

import numpy as np
import polars as pl

from stages.core.text import UNSPACED, loose, normalise
from stages.mining.candidates.documents import Held
from stages.retrieval.exact.scoring import lengths, pair_scores_at

_ROWS = 8192

_UNSPACED = re.compile(f"[{UNSPACED}]")

# Answers that any document may contain without answering.
_GENERIC = {"yes", "no", "true", "false", "none", "both", "neither", "unknown", "ja", "nein", "oui", "non"}
_GENERIC |= {"是", "否", "是的", "不是", "有", "没有", "对", "不对", "可以", "不可以"}


def united_positives(queries: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    """Each query's positives and those of the questions that only restate it: query_id, doc_id, own (bool).

    Two questions are the same one when their loose form (case, punctuation and compatibility forms taken away) is
    equal, whatever their splits: what is not `own` only keeps documents from being taken for wrong, and none becomes a
    positive of another question, so no label of dev or test is learned. `judged` needs query_id, doc_id, relevance;
    relevance above 0 is a positive.
    """
    forms = [loose(text) or normalise(text) for text in queries["query"]]
    same = queries.select("query_id", pl.Series("form", forms, dtype=pl.String))
    own = judged.filter(pl.col("relevance") > 0).select("query_id", "doc_id")
    repeated = same.filter(pl.len().over("form") > 1)
    pooled = own.join(repeated, on="query_id").select("form", "doc_id").unique()
    borrowed = repeated.join(pooled, on="form").join(own, on=["query_id", "doc_id"], how="anti")
    parts = [
        own.with_columns(own=pl.lit(True)),
        borrowed.select("query_id", "doc_id", own=pl.lit(False)),
    ]
    return pl.concat(parts).sort("query_id", "doc_id")


def usable_answers(answers: pl.DataFrame, min_chars: int) -> pl.DataFrame:
    """query_id and needle: what a document's padded loose form must contain, for answers that tell something.

    Left out are generic answers (yes, none, ...) and those narrower than `min_chars`, where a wide (Chinese, Japanese,
    Korean) character counts as two. A needle is padded by spaces, so that only whole words match, except in scripts
    that do not part words by spaces.
    """
    found = []
    for query_id, answer in answers.select("query_id", "answer").unique().sort("query_id", "answer").iter_rows():
        form = loose(answer)
        if _width(form) >= min_chars and form not in _GENERIC:
            found.append((query_id, form if _UNSPACED.search(form) else f" {form} "))
    return pl.DataFrame(found, schema={"query_id": pl.String, "needle": pl.String}, orient="row").unique(
        maintain_order=True
    )


def containing_answer(rows: pl.DataFrame, needles: pl.DataFrame, forms: pl.DataFrame) -> pl.DataFrame:
    """The (query_id, doc_id) of `rows` whose document holds an answer of the query.

    `needles`: query_id, needle; `forms`: doc_id, loose (of every document in `rows`). A passage that holds the answer
    is not taken for a negative since Karpukhin et al., "Dense Passage Retrieval", EMNLP 2020.
    """
    pairs = rows.select("query_id", "doc_id").unique().join(needles, on="query_id").join(forms, on="doc_id")
    holding = pairs.filter(pl.col("loose").str.contains(pl.col("needle"), literal=True))
    return holding.select("query_id", "doc_id").unique()


def positive_similarity(rows: pl.DataFrame, positives: pl.DataFrame, documents: Held) -> pl.DataFrame:
    """`rows` (query_id, doc_id, ...) with positive_similarity: the highest cosine with a positive of the query, f32.

    Null where the query has no positive. `documents` are at least those of both. A figure depends on its two documents
    alone, to the last bit.
    """
    if rows.is_empty():
        return rows.with_columns(positive_similarity=pl.lit(None, pl.Float32))
    vectors, length = documents.vectors, np.maximum(lengths(documents.vectors), 1e-12)
    ours = positives.select("query_id", theirs=pl.Series(documents.places(positives["doc_id"])))
    ours = ours.group_by("query_id").agg("theirs")
    asked = rows.select("query_id", at=pl.Series(documents.places(rows["doc_id"]))).with_row_index("row")
    asked = asked.join(ours, on="query_id", maintain_order="left")
    highest = np.full(len(rows), np.nan, np.float32)
    for part in asked.iter_slices(_ROWS):
        row, at, other = (column.to_numpy() for column in part.select("row", "at", "theirs").explode("theirs"))
        cosine = pair_scores_at(vectors, vectors, at, other) / (length[at] * length[other])
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest[row[starts]] = np.maximum.reduceat(cosine, starts)
    return rows.with_columns(pl.Series("positive_similarity", highest, nan_to_null=True))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
