"""What is known of a candidate without an estimate: labels of people, equal texts, answers, likeness to positives."""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.schemas import PAIR_COLUMNS
from stages.mining.candidates import known_positives
from stages.mining.candidates.documents import DocumentVectors


@dataclass(frozen=True)
class KnownFacts:
    """What is known of the whole collection before any score is looked at."""

    positives: pl.DataFrame
    """query_id, doc_id, positive_kind: `known.united_positives`."""
    duplicate_docs: pl.DataFrame
    """doc_id, text_key of the documents whose text another one has too: `documents.compute_text_keys`."""
    answer_strings: pl.DataFrame
    """query_id, needle: `known.usable_answers`."""


def add_known_facts(
    candidates: pl.DataFrame,
    qrels_scored: pl.DataFrame,
    positives: pl.DataFrame,
    facts: KnownFacts,
    documents: DocumentVectors,
    match_keys: pa.Table | None = None,
) -> pl.DataFrame:
    """Some queries' candidates and curated negatives with what is known of them.

    `candidates`, `qrels_scored` and `positives` hold all rows of these queries, as their contracts and
    `KnownFacts` say; `documents` are at least theirs; `match_keys` (doc_id, loose) is needed where `truth.needles` has
    rows. Columns: those of EVIDENCE up to positive_similarity.
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
    texts = (
        positives.join(facts.duplicate_docs, on="doc_id")
        .select("query_id", "text_key", same_text=pl.lit(True))
        .unique()
    )
    rows = rows.join(facts.duplicate_docs, on="doc_id", how="left").join(texts, on=["query_id", "text_key"], how="left")
    if not len(facts.answer_strings) or match_keys is None:
        return rows.drop("text_key")
    open_rows = rows.filter(pl.col("positive_kind").is_null() & pl.col("curated_negative").is_null())
    open_rows = open_rows.join(facts.answer_strings, on="query_id", how="semi")
    texts_of = match_keys.filter(pc.is_in(match_keys["doc_id"], open_rows["doc_id"].unique().to_arrow()))
    with_answer = known_positives.find_documents_with_answer(
        open_rows, facts.answer_strings, pl.DataFrame(pl.from_arrow(texts_of))
    )
    return rows.join(with_answer.with_columns(contains_answer=pl.lit(True)), on=PAIR_COLUMNS, how="left").drop(
        "text_key"
    )
