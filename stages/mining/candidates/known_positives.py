"""What is already known about a candidate without any score: positives in disguise, and documents with the answer."""

import re
import unicodedata

import numpy as np
import polars as pl

from stages.core.schemas import PAIR_COLUMNS
from stages.core.text import UNSPACED_SCRIPTS, casefold_words, match_key
from stages.mining.candidates.documents import DocumentVectors
from stages.retrieval.exact.scoring import pair_scores_at, vector_norms

_SIMILARITY_ROWS_PER_BATCH = 8192

_UNSPACED_PATTERN = re.compile(f"[{UNSPACED_SCRIPTS}]")

# Answers that any document may contain without answering.
_GENERIC_ANSWERS = {"yes", "no", "true", "false", "none", "both", "neither", "unknown", "ja", "nein", "oui", "non"}
_GENERIC_ANSWERS |= {"是", "否", "是的", "不是", "有", "没有", "对", "不对", "可以", "不可以"}


def pool_positives(queries: pl.DataFrame, qrels: pl.DataFrame) -> pl.DataFrame:
    """Each query's positives and those of the questions that only restate it: query_id, doc_id, own (bool).

    Two questions are the same one when their loose form (case, punctuation and compatibility forms taken away) is
    equal, whatever their splits: what is not `own` only keeps documents from being taken for wrong, and none becomes a
    positive of another question, so no label of dev or test is learned. `qrels` needs query_id, doc_id, relevance;
    relevance above 0 is a positive.
    """
    match_keys = [match_key(text) for text in queries["query"]]
    keyed_queries = queries.select("query_id", pl.Series("form", match_keys, dtype=pl.String))
    own = qrels.filter(pl.col("relevance") > 0).select("query_id", "doc_id")
    restated = keyed_queries.filter(pl.len().over("form") > 1)
    pooled = own.join(restated, on="query_id").select("form", "doc_id").unique()
    borrowed = restated.join(pooled, on="form").join(own, on=PAIR_COLUMNS, how="anti")
    parts = [
        own.with_columns(positive_kind=pl.lit("own")),
        borrowed.select("query_id", "doc_id", positive_kind=pl.lit("paraphrase")),
    ]
    return pl.concat(parts).sort("query_id", "doc_id")


def select_answer_strings(answers: pl.DataFrame, min_chars: int) -> pl.DataFrame:
    """query_id and needle: what a document's padded loose form must contain, for answers that tell something.

    Left out are generic answers (yes, none, ...) and those narrower than `min_chars`, where a wide (Chinese, Japanese,
    Korean) character counts as two. A needle is padded by spaces, so that only whole words match, except in scripts
    that do not part words by spaces.
    """
    found = []
    for query_id, answer in answers.select("query_id", "answer").unique().sort("query_id", "answer").iter_rows():
        answer_key = casefold_words(answer)
        if _display_width(answer_key) >= min_chars and answer_key not in _GENERIC_ANSWERS:
            found.append((query_id, answer_key if _UNSPACED_PATTERN.search(answer_key) else f" {answer_key} "))
    return pl.DataFrame(found, schema={"query_id": pl.String, "needle": pl.String}, orient="row").unique(
        maintain_order=True
    )


def find_documents_with_answer(
    rows: pl.DataFrame, answer_strings: pl.DataFrame, match_keys: pl.DataFrame
) -> pl.DataFrame:
    """The (query_id, doc_id) of `rows` whose document holds an answer of the query.

    `answer_strings`: query_id, needle; `match_keys`: doc_id, loose (of every document in `rows`). A passage that holds
    the answer is not taken for a negative since Karpukhin et al., "Dense Passage Retrieval", EMNLP 2020.
    """
    pairs = rows.select("query_id", "doc_id").unique().join(answer_strings, on="query_id").join(match_keys, on="doc_id")
    matches = pairs.filter(pl.col("loose").str.contains(pl.col("needle"), literal=True))
    return matches.select("query_id", "doc_id").unique()


def add_positive_similarity(rows: pl.DataFrame, positives: pl.DataFrame, documents: DocumentVectors) -> pl.DataFrame:
    """`rows` (query_id, doc_id, ...) with positive_similarity: the highest cosine with a positive of the query, f32.

    Null where the query has no positive. `documents` are at least those of both. A figure depends on its two documents
    alone, to the last bit.
    """
    if rows.is_empty():
        return rows.with_columns(positive_similarity=pl.lit(None, pl.Float32))
    vectors, norms = documents.vectors, np.maximum(vector_norms(documents.vectors), 1e-12)
    positive_rows = positives.select("query_id", theirs=pl.Series(documents.find_rows(positives["doc_id"])))
    positive_rows = positive_rows.group_by("query_id").agg("theirs")
    numbered_rows = rows.select("query_id", at=pl.Series(documents.find_rows(rows["doc_id"]))).with_row_index("row")
    numbered_rows = numbered_rows.join(positive_rows, on="query_id", maintain_order="left")
    highest = np.full(len(rows), np.nan, np.float32)
    for part in numbered_rows.iter_slices(_SIMILARITY_ROWS_PER_BATCH):
        row, at, other = (column.to_numpy() for column in part.select("row", "at", "theirs").explode("theirs"))
        cosine = pair_scores_at(vectors, vectors, at, other) / (norms[at] * norms[other])
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest[row[starts]] = np.maximum.reduceat(cosine, starts)
    return rows.with_columns(pl.Series("positive_similarity", highest, nan_to_null=True))


def _display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
