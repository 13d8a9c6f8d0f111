"""DataFrames handed in from Python, pandas or polars, as a source."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from stages.core.errors import InputError
from stages.readers.base import Batch, Source, as_cell

_ROWS = 4096


def frame_source(frame: Any, label: str) -> Source:
    """A pandas or polars DataFrame as a source; row numbers are positions from 1, an index is not looked at."""
    if not isinstance(frame, pl.DataFrame) and not hasattr(frame, "iloc"):
        raise InputError(f"{label}: expected a pandas or polars DataFrame, got {type(frame).__name__}")
    return Source(label, lambda: _read(frame))


def _read(frame: Any) -> Iterator[Batch]:
    for start in range(0, max(len(frame), 1), _ROWS):
        if isinstance(frame, pl.DataFrame):
            columns = frame.slice(start, _ROWS).to_dict(as_series=False)
        else:
            part = frame.iloc[start : start + _ROWS]
            columns = {str(name): part.iloc[:, i].tolist() for i, name in enumerate(part.columns)}
        rows = list(range(start + 1, min(start + _ROWS, len(frame)) + 1))
        yield Batch(rows, {name: list(map(as_cell, values)) for name, values in columns.items()})
