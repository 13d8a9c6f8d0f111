"""What people decided about single (query, document) pairs: a file that survives every refresh.

Its columns are query_id, doc_id and label: "positive", "negative", or empty if nobody has decided yet. Other columns
(who, when, why) may be present. Of several rows on one pair, the last decision holds. A decision takes precedence over
the table: it makes a positive, or a curated negative, of whatever the table has. It does not move queries between
train, dev and test.
"""

from pathlib import Path

import polars as pl

from stages.core.errors import InputError
from stages.core.schemas import PAIR_COLUMNS
from stages.pairs.rejects import RejectWriter
from stages.readers.base import read_columns
from stages.readers.files import file_source

RELEVANCE_BY_LABEL = {"positive": 1, "negative": 0}
OVERRIDE_SCHEMA = {"row": pl.Int64, "query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int32}


def read_label_overrides(path: Path) -> pl.DataFrame:
    """row (1-based), query_id, doc_id, relevance (1 or 0), one row for each decided pair.

    The file may be empty. Raises `InputError` for a row that can't be read.
    """
    if not path.stat().st_size:
        return pl.DataFrame(schema=OVERRIDE_SCHEMA)
    rows = read_columns(file_source(path, path.name), {name: name for name in (*PAIR_COLUMNS, "label")})
    rows = rows.with_columns(pl.col("label").str.strip_chars().str.to_lowercase())
    decided = rows.filter(pl.col("label").is_not_null() & (pl.col("label") != ""))
    unusable = decided.filter(
        ~pl.col("label").is_in(list(RELEVANCE_BY_LABEL)) | pl.any_horizontal(pl.col(PAIR_COLUMNS).is_null())
    )
    if len(unusable):
        number, *cells = unusable.row(0)
        given = ", ".join(map(repr, cells))
        raise InputError(
            f"{path}, row {number}: query_id, doc_id, label = {given} is no decision. Both ids are needed, and the "
            "label is positive, negative or empty."
        )
    relevance = pl.col("label").replace_strict(RELEVANCE_BY_LABEL, return_dtype=pl.Int32)
    frame = decided.select("row", *PAIR_COLUMNS, relevance=relevance)
    return frame.unique(PAIR_COLUMNS, keep="last", maintain_order=True)


def apply_label_overrides(
    qrels: pl.DataFrame, overrides: pl.DataFrame, queries: pl.DataFrame, documents: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`qrels` (query_index, position, relevance) with `overrides` applied, and the overrides with unknown ids and the
    reason. `queries`: query_index, query_id; `documents`: position, doc_id."""
    placed = overrides.join(queries.select("query_index", "query_id"), on="query_id", how="left")
    placed = placed.join(documents.select("position", "doc_id"), on="doc_id", how="left")
    unknown_query = pl.when(pl.col("query_index").is_null()).then(pl.lit("label override for an unknown question"))
    reason = unknown_query.otherwise(pl.lit("label override for an unknown document"))
    unknown = placed.filter(pl.col("query_index").is_null() | pl.col("position").is_null()).with_columns(reason=reason)
    known = placed.join(unknown.select("row"), on="row", how="anti")
    kept = qrels.join(known.select("query_index", "position"), on=["query_index", "position"], how="anti")
    return pl.concat([kept, known.select(kept.columns)], how="vertical_relaxed"), unknown


def reject_unknown_overrides(unknown: pl.DataFrame, path: Path, reject_writer: RejectWriter) -> list[str]:
    """Reject the overrides with unknown ids, and return a note about them."""
    for row in unknown.iter_rows(named=True):
        data = {name: row[name] for name in ("query_id", "doc_id")}
        reject_writer.add(path.name, row["row"], row["reason"], data, is_table_row=False)
    note = f"{len(unknown):,} decisions in {path.name} are on questions or documents that are not there: see rejects"
    return [note] if len(unknown) else []
