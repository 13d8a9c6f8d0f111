"""Positives under another query or another text, and documents that contain the answer: known without any model."""

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

_GENERIC_ANSWERS = {"yes", "no", "true", "false", "none", "both", "neither", "unknown", "ja", "nein", "oui", "non"}
_GENERIC_ANSWERS |= {"是", "否", "是的", "不是", "有", "没有", "对", "不对", "可以", "不可以"}
"""Answers that a document may contain without answering the query."""


def pool_positives(queries: pl.DataFrame, qrels: pl.DataFrame) -> pl.DataFrame:
    """The positives of each query and of its paraphrases: query_id, doc_id, positive_kind ("own" or "paraphrase").

    Two queries are paraphrases if their `match_key` is equal, in whatever split they are. A positive of a paraphrase is
    only excluded from the negatives of a query. It does not become a positive of the query, so no label of dev or test
    reaches training. `queries`: query_id, query; `qrels`: query_id, doc_id, relevance, where a positive has a relevance
    above 0.
    """
    match_keys = [match_key(text) for text in queries["query"]]
    keyed_queries = queries.select("query_id", pl.Series("match_key", match_keys, dtype=pl.String))
    own = qrels.filter(pl.col("relevance") > 0).select(PAIR_COLUMNS)
    paraphrases = keyed_queries.filter(pl.len().over("match_key") > 1)
    pooled = own.join(paraphrases, on="query_id").select("match_key", "doc_id").unique()
    of_paraphrases = paraphrases.join(pooled, on="match_key").join(own, on=PAIR_COLUMNS, how="anti")
    parts = [
        own.with_columns(positive_kind=pl.lit("own")),
        of_paraphrases.select(*PAIR_COLUMNS, positive_kind=pl.lit("paraphrase")),
    ]
    return pl.concat(parts).sort(PAIR_COLUMNS)


def compute_positive_score_range(positives: pl.DataFrame) -> pl.DataFrame:
    """query_id, positive_score_min, positive_score_max of `positives` (query_id, score): a row for each query."""
    return positives.group_by("query_id").agg(
        positive_score_min=pl.col("score").min(), positive_score_max=pl.col("score").max()
    )


MIN_ANSWER_CHARS = 4
"""Narrower answers are not looked for in documents; a Chinese, Japanese or Korean character counts as two."""


def select_answer_strings(answers: pl.DataFrame, min_chars: int = MIN_ANSWER_CHARS) -> pl.DataFrame:
    """The answers that are specific enough to be searched for in documents: query_id, answer_string.

    `answers`: query_id, answer. Generic answers (yes, none, ...) are left out, and those with fewer than `min_chars`
    characters, where a wide character (Chinese, Japanese, Korean) counts as two. An answer string is the answer's
    `casefold_words` with a space on both sides, so that only whole words match. In scripts without spaces between words
    it has none.
    """
    found = []
    for query_id, answer in answers.select("query_id", "answer").unique().sort("query_id", "answer").iter_rows():
        words = casefold_words(answer)
        if _display_width(words) >= min_chars and words not in _GENERIC_ANSWERS:
            found.append((query_id, words if _UNSPACED_PATTERN.search(words) else f" {words} "))
    return pl.DataFrame(found, schema={"query_id": pl.String, "answer_string": pl.String}, orient="row").unique(
        maintain_order=True
    )


def find_documents_with_answer(
    rows: pl.DataFrame, answer_strings: pl.DataFrame, document_words: pl.DataFrame
) -> pl.DataFrame:
    """The pairs (query_id, doc_id) among `rows` whose document contains an answer of the query.

    `answer_strings`: query_id, answer_string; `document_words`: doc_id, words of every document in `rows`
    (`documents.write_document_words`). Passages that contain the answer are excluded from the negatives since Karpukhin
    et al., "Dense Passage Retrieval", EMNLP 2020.
    """
    pairs = rows.select(PAIR_COLUMNS).unique().join(answer_strings, on="query_id").join(document_words, on="doc_id")
    matches = pairs.filter(pl.col("words").str.contains(pl.col("answer_string"), literal=True))
    return matches.select(PAIR_COLUMNS).unique()


def add_positive_similarity(rows: pl.DataFrame, positives: pl.DataFrame, documents: DocumentVectors) -> pl.DataFrame:
    """`rows` (query_id, doc_id, ...) with positive_similarity: the highest cosine with a positive of the query (f32).

    It is null for a query without a positive. `documents` contains the documents of `rows` and `positives`. A cosine
    depends on its two documents alone, to the last bit.
    """
    if rows.is_empty():
        return rows.with_columns(positive_similarity=pl.lit(None, pl.Float32))
    vectors, norms = documents.vectors, np.maximum(vector_norms(documents.vectors), 1e-12)
    positive_rows = positives.select("query_id", positive_row=pl.Series(documents.find_rows(positives["doc_id"])))
    positive_rows = positive_rows.group_by("query_id").agg("positive_row")
    numbered_rows = rows.select("query_id", own_row=pl.Series(documents.find_rows(rows["doc_id"])))
    numbered_rows = numbered_rows.with_row_index("row").join(
        positive_rows, on="query_id", how="inner", maintain_order="left"
    )
    highest = np.full(len(rows), np.nan, np.float32)
    for part in numbered_rows.iter_slices(_SIMILARITY_ROWS_PER_BATCH):
        row, own_row, positive_row = (
            column.to_numpy() for column in part.select("row", "own_row", "positive_row").explode("positive_row")
        )
        cosine = pair_scores_at(vectors, vectors, own_row, positive_row) / (norms[own_row] * norms[positive_row])
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        highest[row[starts]] = np.maximum.reduceat(cosine, starts)
    return rows.with_columns(pl.Series("positive_similarity", highest, nan_to_null=True))


def _display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
