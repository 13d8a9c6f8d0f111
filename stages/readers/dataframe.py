"""DataFrames handed in from Python, pandas or polars, as a source."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from stages.core.errors import InputError
from stages.readers.base import RowBatch, TableSource, to_cell

_DATAFRAME_BATCH_ROWS = 4096


def dataframe_source(frame: Any, label: str) -> TableSource:
    """A pandas or polars DataFrame as a source; row numbers are positions from 1, and an index is ignored."""
    if not isinstance(frame, pl.DataFrame) and not hasattr(frame, "iloc"):
        raise InputError(f"{label}: expected a pandas or polars DataFrame, got {type(frame).__name__}")
    return TableSource(label, lambda: _read_dataframe(frame))


def _read_dataframe(frame: Any) -> Iterator[RowBatch]:
    for start in range(0, max(len(frame), 1), _DATAFRAME_BATCH_ROWS):
        if isinstance(frame, pl.DataFrame):
            columns = frame.slice(start, _DATAFRAME_BATCH_ROWS).to_dict(as_series=False)
        else:
            part = frame.iloc[start : start + _DATAFRAME_BATCH_ROWS]
            columns = {str(name): part.iloc[:, i].tolist() for i, name in enumerate(part.columns)}
        rows = list(range(start + 1, min(start + _DATAFRAME_BATCH_ROWS, len(frame)) + 1))
        yield RowBatch(rows, {name: list(map(to_cell, values)) for name, values in columns.items()})
