"""Resolve the qrels of all rows: one text for each id, no contradictions, no query without a positive.

Pure functions on frames of 64-bit keys; a row is one number (see `stages.pairs.rejects.ROW_NUMBER_BITS`).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from stages.core.errors import InputError

ALLOWED_CONFLICT_RATIO, ALLOWED_CONFLICTS = 0.05, 5
"""If a larger share and a larger number of rows conflict, a recognised id column does not hold question ids."""

PARTLY_CONTRADICTORY = "partly contradictory"
"""The reason of a row of which some qrels are used."""


@dataclass(frozen=True)
class ResolvedQrels:
    """The resolved qrels, documents of the corpus without one, and the rejected rows (row, reason)."""

    qrels: pl.DataFrame
    standalone_documents: pl.DataFrame
    rejected_rows: pl.DataFrame
    has_dropped_ids: bool


def resolve_qrels(qrels: pl.DataFrame, standalone_documents: pl.DataFrame, trust_ids: bool) -> ResolvedQrels:
    """Resolve `qrels` (row, q, d, relevance, optionally id and document_id) and `standalone_documents` (row, d,
    document_id).

    - An id of two texts belongs to the text of its first row; the rows of the other text are rejected. If `trust_ids`
      is not set and more than 5 % of the rows (and more than 5) conflict, the column is ignored (`has_dropped_ids`).
    - A pair that is labelled relevant and not relevant is contradictory, and none of its labels is used.
    - A query without a positive is rejected with its rows.
    A row is rejected if none of its qrels is left; its reason is "partly contradictory" if some are left.
    """
    rejected: list[pl.DataFrame] = []
    dropped = False
    if "id" in qrels.columns:
        conflicts = find_id_conflicts(qrels, "id", "q")
        if not trust_ids and len(conflicts) > max(ALLOWED_CONFLICTS, ALLOWED_CONFLICT_RATIO * qrels["row"].n_unique()):
            qrels, dropped = qrels.drop("id"), True
        else:
            qrels = qrels.join(conflicts, on="row", how="anti")
            rejected.append(conflicts.with_columns(reason=pl.lit("id of another question")))
    with_document_ids = [
        frame.select("row", "d", "document_id")
        for frame in (qrels, standalone_documents)
        if "document_id" in frame.columns
    ]
    if with_document_ids:
        conflicts = find_id_conflicts(pl.concat(with_document_ids), "document_id", "d")
        qrels, standalone_documents = (
            frame.join(conflicts, on="row", how="anti") for frame in (qrels, standalone_documents)
        )
        rejected.append(conflicts.with_columns(reason=pl.lit("id of another document")))
    qrels, contradictory = drop_contradictions(qrels)
    rejected.append(contradictory)
    queries_without_positive = qrels.filter(pl.col("relevance") == 0).select("q").unique()
    if len(queries_without_positive):
        queries_without_positive = queries_without_positive.join(
            qrels.filter(pl.col("relevance") > 0), on="q", how="anti"
        )
        without_positive = qrels.join(queries_without_positive, on="q", how="semi").select("row").unique()
        without_positive = without_positive.join(contradictory, on="row", how="anti")
        qrels = qrels.join(queries_without_positive, on="q", how="anti")
        rejected.append(without_positive.with_columns(reason=pl.lit("no positive document")))
    rejected_rows = pl.concat(rejected).unique("row", keep="first", maintain_order=True)
    partly = rejected_rows.join(qrels.select("row").unique(), on="row", how="semi").select("row")
    rejected_rows = pl.concat(
        [
            rejected_rows.join(partly, on="row", how="anti"),
            rejected_rows.join(partly, on="row", how="semi").with_columns(reason=pl.lit(PARTLY_CONTRADICTORY)),
        ]
    )
    return ResolvedQrels(qrels, standalone_documents, rejected_rows.sort("row"), dropped)


def resolve_id_qrels(
    id_qrels: pl.DataFrame, standalone_queries: pl.DataFrame, standalone_documents: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Resolve qrels by ids to texts; also return the rejected rows (row, reason): unknown ids, ids of two texts."""
    reused_ids = find_id_conflicts(standalone_queries, "id", "q")
    queries = standalone_queries.join(reused_ids, on="row", how="anti").unique("id", keep="first", maintain_order=True)
    documents = standalone_documents.sort("row").unique("document_id", keep="first", maintain_order=True)
    resolved = id_qrels.join(queries.select("id", "q"), on="id", how="left").join(
        documents.select("document_id", "d"), on="document_id", how="left"
    )
    unknown = pl.concat(
        [
            reused_ids.with_columns(reason=pl.lit("id of another question")),
            resolved.filter(pl.col("q").is_null()).select("row", reason=pl.lit("unknown question id")),
            resolved.filter(pl.col("q").is_not_null() & pl.col("d").is_null()).select(
                "row", reason=pl.lit("unknown document id")
            ),
        ]
    )
    return resolved.filter(pl.col("q").is_not_null() & pl.col("d").is_not_null()), unknown


def find_id_conflicts(frame: pl.DataFrame, id_column: str, key_column: str) -> pl.DataFrame:
    """Rows whose id (column `id_column`) an earlier row gave to another text (column `key_column`)."""
    known = frame.filter(pl.col(id_column).is_not_null()).select("row", id_column, key_column)
    if known[id_column].hash().n_unique() == len(known):  # the usual case, with a fraction of the memory
        return pl.DataFrame(schema={"row": pl.Int64})
    conflicting_ids = (
        known.group_by(id_column).agg(pl.col(key_column).n_unique()).filter(pl.col(key_column) > 1).select(id_column)
    )
    if not len(conflicting_ids):
        return pl.DataFrame(schema={"row": pl.Int64})
    known = known.join(conflicting_ids, on=id_column, how="semi").sort("row", maintain_order=True)
    first = known.group_by(id_column, maintain_order=True).agg(pl.col(key_column).first().alias("first"))
    return (
        known.join(first, on=id_column).filter(pl.col(key_column) != pl.col("first")).select("row").unique().sort("row")
    )


def drop_contradictions(qrels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The qrels without pairs that are relevant in one row and not in another, and the rows of these pairs."""
    if not len(qrels) or qrels["relevance"].min() != 0:
        return qrels, pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})
    pairs = qrels.group_by("q", "d").agg(low=pl.col("relevance").min(), high=pl.col("relevance").max())
    both = pairs.filter((pl.col("low") == 0) & (pl.col("high") > 0)).select("q", "d")
    rows = qrels.join(both, on=["q", "d"], how="semi").select("row").unique()
    return qrels.join(both, on=["q", "d"], how="anti"), rows.with_columns(reason=pl.lit("contradictory"))


def assign_ids(keys: pl.DataFrame, given_ids: pl.DataFrame | None) -> pl.DataFrame:
    """Assign an id to each text: its smallest given id, or else its hash.

    `keys` holds key and low, the halves of the 128-bit hash; `given_ids` holds key and id (or null). Returns key, id
    and the other columns of `keys`, sorted by id.
    """
    frame = keys
    if given_ids is not None:
        smallest = given_ids.filter(pl.col("id").is_not_null()).group_by("key").agg(pl.col("id").min())
        frame = keys.join(smallest, on="key", how="left")
        missing = frame.filter(pl.col("id").is_null())
        named = frame.filter(pl.col("id").is_not_null())
        frame = pl.concat([named, missing.with_columns(id=_hash_ids(missing)).select(named.columns)])
    else:
        frame = keys.with_columns(id=_hash_ids(keys))
    frame = frame.sort("id")
    if frame["id"].n_unique() != len(frame):
        duplicate_id = frame.filter(pl.col("id").is_duplicated())["id"][0]
        raise InputError(f"the id {duplicate_id!r} is given to one text and is the hash of another: rename it")
    return frame


def _hash_ids(keys: pl.DataFrame) -> pl.Series:
    both = np.stack([keys["key"].to_numpy(), keys["low"].to_numpy()], axis=1).astype(">u8").tobytes().hex()
    return pl.Series([both[i : i + 32] for i in range(0, len(both), 32)], dtype=pl.String)


def concat_unique_keys(frames: list[pl.DataFrame], key_column: str) -> pl.DataFrame:
    """One row for each text. Raises `InputError` if two texts have the same 64-bit `key_column`."""
    frame = pl.concat(frames).unique()
    if (
        frame[key_column].n_unique() != len(frame)
        and frame[key_column].n_unique() != frame.select(key_column, "low").n_unique()
    ):
        raise InputError("two different texts have the same 64-bit hash; change one of them by a character")
    return frame
