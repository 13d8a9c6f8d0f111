"""The results of every reader: batches of cells as text, and rejected rows; and the conversion of cells to text."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any

import polars as pl

from stages.core.errors import InputError

Cell = str | list[str] | None
"""A cell is text, several texts (a real list in JSON or Parquet), or nothing."""

MAX_BATCH_CHARS = 8 << 20
MAX_BATCH_ROWS = 20_000


@dataclass(frozen=True)
class RejectedRow:
    """A row that a reader could not parse: its number from 1, a reason, and the cells that were read."""

    row_number: int
    reason: str
    data: Mapping[str, Any]


@dataclass
class RowBatch:
    """Rows of one source: `row_numbers` holds their 1-based numbers (with gaps), `columns` their cells."""

    row_numbers: list[int]
    columns: dict[str, list[Cell]]
    rejected_rows: list[RejectedRow] = field(default_factory=list)


@dataclass(frozen=True)
class TableSource:
    """A table that can be read several times. `label` is its name in rejects and messages (never a path)."""

    label: str
    read: Callable[[], Iterator[RowBatch]]


def read_columns(source: TableSource, columns: Mapping[str, str], optional: Collection[str] = ()) -> pl.DataFrame:
    """The columns of a source as texts, in memory: `row` (1-based), and each of `columns` under its new name.

    Columns in `optional` may be missing and are null then. Raises `InputError` for another column that is missing, a
    cell with several texts, and a row that the reader rejects.
    """
    frames = []
    found: dict[str, None] = {}
    for batch in source.read():
        found |= dict.fromkeys(batch.columns)
        nothing: list[Cell] = [None] * len(batch.row_numbers)
        cells = {new: batch.columns.get(name, nothing) for name, new in columns.items()}
        problems = [(rejected.row_number, rejected.reason) for rejected in batch.rejected_rows]
        problems += [
            (number, f"{name} holds several texts")
            for name, column in cells.items()
            for number, cell in zip(batch.row_numbers, column, strict=True)
            if isinstance(cell, list)
        ]
        if problems:
            raise InputError(f"{source.label}, row {min(problems)[0]}: {min(problems)[1]}.")
        schema = {"row": pl.Int64} | dict.fromkeys(cells, pl.String)
        try:
            frames.append(pl.DataFrame({"row": batch.row_numbers} | cells, schema))
        except UnicodeEncodeError as error:  # a byte that was not in the encoding came as a lone surrogate
            raise InputError(f"{source.label}: a cell is not in the file's encoding: {error.object[:80]!r}.") from error
    if missing := [name for name in columns if name not in found and name not in optional]:
        raise InputError(f"{source.label}: there is no column {missing[0]!r}. Its columns: {', '.join(found)}.")
    return pl.concat(frames)


def to_cell(value: Any) -> Cell:
    """A value of any type as a cell; 123.0 reads as "123" (spreadsheets hold ids as floats), NaN and None as nothing.

    A mapping with a `text` entry (SQuAD's `answers`) gives that entry, any other mapping its JSON.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return to_cell(value["text"]) if "text" in value else json.dumps(value, ensure_ascii=False, default=str)
    if hasattr(value, "tolist") and not isinstance(value, (bytes, bytearray)):  # numpy arrays and scalars
        return to_cell(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [text for text in map(_value_to_text, value) if text is not None]
    return _value_to_text(value)


def _value_to_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:  # pandas' NA, NaT; NaN
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, (date, time)):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, Mapping) else str(value)


def batch_rows(rows: Iterable[tuple[int, Mapping[str, Cell]] | RejectedRow]) -> Iterator[RowBatch]:
    """Gather single rows, whose columns may differ, into batches bounded in rows and in characters."""
    row_numbers: list[int] = []
    records: list[Mapping[str, Cell]] = []
    rejected_rows: list[RejectedRow] = []
    size = 0
    for item in rows:
        if isinstance(item, RejectedRow):
            rejected_rows.append(item)
            size += 1000
        else:
            row_numbers.append(item[0])
            records.append(item[1])
            size += sum(map(cell_length, item[1].values()))
        if size >= MAX_BATCH_CHARS or len(row_numbers) >= MAX_BATCH_ROWS:
            yield RowBatch(row_numbers, _records_to_columns(records), rejected_rows)
            row_numbers, records, rejected_rows, size = [], [], [], 0
    if row_numbers or rejected_rows:
        yield RowBatch(row_numbers, _records_to_columns(records), rejected_rows)


def _records_to_columns(records: list[Mapping[str, Cell]]) -> dict[str, list[Cell]]:
    names = {name: None for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


def cell_length(cell: Cell) -> int:
    """Characters in a cell."""
    if cell is None:
        return 0
    return len(cell) if isinstance(cell, str) else sum(map(len, cell))
