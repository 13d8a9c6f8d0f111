"""What is known of a candidate without an estimate: labels, equal texts, answers, similarity to positives."""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.schemas import PAIR_COLUMNS
from stages.mining.candidates import known_positives
from stages.mining.candidates.documents import DocumentVectors


@dataclass(frozen=True)
class KnownFacts:
    """What is known of the whole collection before any score is computed."""

    positives: pl.DataFrame
    """query_id, doc_id, positive_kind: the result of `known_positives.pool_positives`."""
    near_duplicates: pl.DataFrame
    """NEAR_DUPLICATES: doc_id, cluster of the documents that are one with another."""
    answer_strings: pl.DataFrame
    """query_id, answer_string: the result of `known_positives.select_answer_strings`."""


def add_known_facts(
    candidates: pl.DataFrame,
    qrels_scored: pl.DataFrame,
    positives: pl.DataFrame,
    facts: KnownFacts,
    documents: DocumentVectors,
    document_words: pa.Table | None = None,
) -> pl.DataFrame:
    """The candidates of some queries and their curated negatives, with what is known of each.

    `candidates` (CANDIDATES after `merge.merge_sources`), `qrels_scored` (QRELS_SCORED) and `positives` (as
    `KnownFacts.positives`) hold all rows of these queries. `documents` contains their documents. `document_words`
    (`documents.write_document_words`) is needed if there are answer strings. The columns of the result are those of
    CANDIDATE_FEATURES up to positive_similarity.
    """
    curated = qrels_scored.filter(pl.col("relevance") == 0).select(
        *PAIR_COLUMNS, "score", curated_negative=pl.lit(True)
    )
    not_retrieved = curated.join(candidates, on=PAIR_COLUMNS, how="anti").select(
        *PAIR_COLUMNS, source=pl.lit("curated_negative"), rank=pl.lit(0, pl.Int32), score="score"
    )
    rows = pl.concat([candidates.select(not_retrieved.columns), not_retrieved])
    rows = known_positives.add_positive_similarity(rows, positives, documents)
    rows = rows.join(positives, on=PAIR_COLUMNS, how="left").join(curated.drop("score"), on=PAIR_COLUMNS, how="left")
    positive_texts = (
        positives.join(facts.near_duplicates, on="doc_id")
        .select("query_id", "cluster", same_text=pl.lit(True))
        .unique()
    )
    rows = (
        rows.join(facts.near_duplicates, on="doc_id", how="left")
        .join(positive_texts, on=["query_id", "cluster"], how="left")
        .drop("cluster")
    )
    if not len(facts.answer_strings) or document_words is None:
        return rows
    unlabelled = rows.filter(pl.col("positive_kind").is_null() & pl.col("curated_negative").is_null())
    unlabelled = unlabelled.join(facts.answer_strings, on="query_id", how="semi")
    is_needed = pc.is_in(document_words["doc_id"], unlabelled["doc_id"].unique().to_arrow())
    with_answer = known_positives.find_documents_with_answer(
        unlabelled, facts.answer_strings, pl.DataFrame(pl.from_arrow(document_words.filter(is_needed)))
    )
    return rows.join(with_answer.with_columns(contains_answer=pl.lit(True)), on=PAIR_COLUMNS, how="left")
