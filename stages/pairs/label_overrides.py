"""What people decided about single (question, document) pairs: a JSON Lines file that outlives every refresh.

A line is {"query_id": ..., "doc_id": ..., "label": "positive" | "negative"}; other keys (who, when, why) may stand
there too, and an empty label (null or "") is no decision yet. A .csv file has these keys as columns. Of several lines
on one pair the last decision holds. A decision is stronger than the table: it makes a positive, or a
curated negative, of whatever the table said. It does not move questions between train, dev and test.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.errors import InputError
from stages.pairs.rejects import RejectWriter

RELEVANCE_BY_LABEL = {"positive": 1, "negative": 0}
OVERRIDE_SCHEMA = {"row": pl.Int64, "query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int32}


def read_label_overrides(path: Path) -> pl.DataFrame:
    """row (line, or row of a CSV), query_id, doc_id, relevance (1 or 0), a row a pair. `InputError` names a bad one."""
    rows = []
    for number, line in _iter_override_rows(path):
        try:
            override = _parse_override(json.loads(line) if isinstance(line, str) else line)
        except ValueError as error:
            raise InputError(
                f'{path}, line {number}: no decision ({error}). A line is {{"query_id": ..., "doc_id": ..., '
                f'"label": "positive"}}, or "negative".'
            ) from error
        if override:
            rows.append((number, *override))
    frame = pl.DataFrame(rows, schema=OVERRIDE_SCHEMA, orient="row")
    return frame.unique(["query_id", "doc_id"], keep="last", maintain_order=True)


def _parse_override(given: Any) -> tuple[str, str, int] | None:
    """query_id, doc_id and relevance; None where nobody decided yet. Raises `ValueError` that says what is wrong."""
    if not isinstance(given, dict):
        raise ValueError("not an object with keys")
    if missing_keys := [name for name in ("query_id", "doc_id", "label") if name not in given]:
        raise ValueError(f"no key {', no key '.join(missing_keys)}")
    label = given["label"]
    if label is None or label == "":
        return None
    relevance = RELEVANCE_BY_LABEL.get(str(label).strip().casefold())
    if relevance is None:
        raise ValueError(f"label is {label!r}")
    return str(given["query_id"]), str(given["doc_id"]), relevance


def _iter_override_rows(path: Path) -> Iterator[tuple[int, str | dict[str, str | None]]]:
    """The file's lines that hold something, or its rows where it is a CSV, with their numbers."""
    try:
        # utf-8-sig: Excel marks what it saves as UTF-8
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                head = file.readline()
                file.seek(0)
                # with a comma as decimal sign, spreadsheets part columns by semicolons
                delimiter = max(",;\t", key=head.count)
                yield from enumerate(csv.DictReader(file, delimiter=delimiter), 1)
            else:
                yield from ((number, line) for number, line in enumerate(file.read().split("\n"), 1) if line.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: the decisions can't be read: {error}") from error


def apply_label_overrides(
    qrels: pl.DataFrame, overrides: pl.DataFrame, queries: pl.DataFrame, documents: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`qrels` (question, position, relevance) with the decisions in place of what they contradict; and those on ids
    that are not there, with the reason. `queries`: question, query_id; `documents`: position, doc_id."""
    placed = overrides.join(queries.select("question", "query_id"), on="query_id", how="left")
    placed = placed.join(documents.select("position", "doc_id"), on="doc_id", how="left")
    unknown_query = pl.when(pl.col("question").is_null()).then(pl.lit("label override for an unknown question"))
    reason = unknown_query.otherwise(pl.lit("label override for an unknown document"))
    unknown = placed.filter(pl.col("question").is_null() | pl.col("position").is_null()).with_columns(reason=reason)
    known = placed.join(unknown.select("row"), on="row", how="anti")
    kept = qrels.join(known.select("question", "position"), on=["question", "position"], how="anti")
    return pl.concat([kept, known.select(kept.columns)], how="vertical_relaxed"), unknown


def reject_unknown_overrides(unknown: pl.DataFrame, path: Path, reject_writer: RejectWriter) -> list[str]:
    """Set aside the decisions on what is not there; what to say of them."""
    for row in unknown.iter_rows(named=True):
        data = {name: row[name] for name in ("query_id", "doc_id")}
        reject_writer.add(path.name, row["row"], row["reason"], data, is_table_row=False)
    note = f"{len(unknown):,} decisions in {path.name} are on questions or documents that are not there: see rejects"
    return [note] if len(unknown) else []
