"""Every input row that was not used, with its reason: written as it comes, and once more at the end for late ones."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from stages.core.schemas import REJECTS
from stages.pairs.external_sort import write_row_groups
from stages.readers.base import TableSource

_MAX_JSON_CELL_CHARS = 1000
_FLUSH_ROWS = 20_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
ROW_NUMBER_BITS = 40
"""A row is known by one number: its source's number above these bits, its own number within the source below."""


class RejectWriter:
    """Collects rejected rows into rejects.parquet and counts them by reason."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._writer = pq.ParquetWriter(path, REJECTS, compression="zstd")
        self._buffer: list[tuple[str, int, str, str]] = []

    def add(self, source: str, row: int, reason: str, data: Mapping[str, Any], is_table_row: bool = True) -> None:
        """Set one row aside; `data` are its cells. Not `is_table_row` is what is no row of the tables."""
        if is_table_row:
            self.counts[reason] += 1
        self._buffer.append((_replace_surrogates(source), row, reason, row_to_json(data)))
        if len(self._buffer) >= _FLUSH_ROWS:
            self._flush()

    def add_deferred(self, reason_by_row: Mapping[int, str], sources: Iterable[TableSource]) -> None:
        """Set aside rows that were taken at first: row number (see `ROW_NUMBER_BITS`) -> reason. Reads their sources
        again."""
        wanted: dict[int, dict[int, str]] = {}
        for row, reason in reason_by_row.items():
            wanted.setdefault(row >> ROW_NUMBER_BITS, {})[row & ((1 << ROW_NUMBER_BITS) - 1)] = reason
        for number, source in enumerate(sources):
            rows = wanted.get(number)
            if not rows:
                continue
            for batch in source.read():
                for i, row in enumerate(batch.row_numbers):
                    if row in rows:
                        data = {name: cells[i] for name, cells in batch.columns.items()}
                        self.add(source.label, row, rows.pop(row), data)
                if not rows:
                    break

    def close(self) -> None:
        """Write what is held and finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        frame = pl.DataFrame(
            sorted(self._buffer),
            schema={"source": pl.String, "row": pl.Int64, "reason": pl.String, "data": pl.String},
            orient="row",
        )
        self._buffer = []
        write_row_groups(self._writer, frame, REJECTS)


def row_to_json(data: Mapping[str, Any]) -> str:
    """A row as JSON, every cell cut at 1,000 characters (with an ellipsis), bytes out of the encoding as U+FFFD."""
    return _replace_surrogates(
        json.dumps({name: _truncate_cell(cell) for name, cell in data.items()}, ensure_ascii=False, default=str)
    )


def _truncate_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell if len(cell) <= _MAX_JSON_CELL_CHARS else cell[:_MAX_JSON_CELL_CHARS] + "…"
    if isinstance(cell, (list, tuple)):
        return [_truncate_cell(entry) for entry in cell[:_MAX_JSON_CELL_CHARS]]
    return cell


def _replace_surrogates(text: str) -> str:
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)
