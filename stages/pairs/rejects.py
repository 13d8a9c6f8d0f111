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
from stages.pairs.external_sort import write_groups
from stages.readers.base import Source

_CUT = 1000
_FLUSH = 20_000
_LONE = re.compile("[\ud800-\udfff]")
ROW_BITS = 40
"""A row is known by one number: its source's number above these bits, its own number within the source below."""


class Rejects:
    """Collects rejected rows into rejects.parquet and counts them by reason."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._writer = pq.ParquetWriter(path, REJECTS, compression="zstd")
        self._held: list[tuple[str, int, str, str]] = []

    def add(self, source: str, row: int, reason: str, data: Mapping[str, Any], counted: bool = True) -> None:
        """Set one row aside; `data` are its cells. Not `counted` is what is no row of the tables."""
        if counted:
            self.counts[reason] += 1
        self._held.append((_safe(source), row, reason, as_json(data)))
        if len(self._held) >= _FLUSH:
            self._flush()

    def add_late(self, late: Mapping[int, str], sources: Iterable[Source]) -> None:
        """Set aside rows that were taken at first: row number (see `ROW_BITS`) -> reason. Reads their sources again."""
        wanted: dict[int, dict[int, str]] = {}
        for row, reason in late.items():
            wanted.setdefault(row >> ROW_BITS, {})[row & ((1 << ROW_BITS) - 1)] = reason
        for number, source in enumerate(sources):
            rows = wanted.get(number)
            if not rows:
                continue
            for batch in source.read():
                for i, row in enumerate(batch.rows):
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
            sorted(self._held),
            schema={"source": pl.String, "row": pl.Int64, "reason": pl.String, "data": pl.String},
            orient="row",
        )
        self._held = []
        write_groups(self._writer, frame, REJECTS)


def as_json(data: Mapping[str, Any]) -> str:
    """A row as JSON, every cell cut at 1,000 characters (an ellipsis says so), bytes out of the encoding as U+FFFD."""
    return _safe(json.dumps({name: _cut(cell) for name, cell in data.items()}, ensure_ascii=False, default=str))


def _cut(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell if len(cell) <= _CUT else cell[:_CUT] + "…"
    if isinstance(cell, (list, tuple)):
        return [_cut(entry) for entry in cell[:_CUT]]
    return cell


def _safe(text: str) -> str:
    return text if text.isascii() else _LONE.sub("\ufffd", text)
