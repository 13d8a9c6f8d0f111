"""Parquet and Arrow (IPC files, streams, Feather 2), read batch by batch."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.readers.base import RowBatch, to_cell

_ARROW_BATCH_ROWS = 4096


def read_parquet(path: Path, label: str) -> Iterator[RowBatch]:
    """Read a Parquet file; columns with lists of numbers (embeddings) are skipped."""
    with pa.OSFile(os.fsencode(path)) as file:
        try:
            table = pq.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if _is_readable_type(field.type)]
            yield from _convert_arrow_batches(table.iter_batches(_ARROW_BATCH_ROWS, columns=columns), columns)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt_file_error(label, "Parquet", error) from error


def read_arrow(path: Path, label: str) -> Iterator[RowBatch]:
    """Read an Arrow IPC file or stream."""
    with pa.OSFile(os.fsencode(path)) as file:
        try:
            start = file.read(6)
            file.seek(0)
            if start == b"ARROW1":
                reader = pa.ipc.open_file(file)
                arrow_batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(file)
                arrow_batches = iter(reader)
            columns = [field.name for field in reader.schema if _is_readable_type(field.type)]
            pieces = (
                batch.slice(i, _ARROW_BATCH_ROWS)
                for batch in arrow_batches
                for i in range(0, batch.num_rows, _ARROW_BATCH_ROWS)
            )
            yield from _convert_arrow_batches((batch.select(columns) for batch in pieces), columns)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt_file_error(label, "Arrow", error) from error


def _convert_arrow_batches(arrow_batches: Iterable[Any], columns: list[str]) -> Iterator[RowBatch]:
    number = 0
    yield RowBatch([], {name: [] for name in columns})  # a table without rows still gives the columns
    for batch in arrow_batches:
        rows = list(range(number + 1, number + 1 + batch.num_rows))
        number += batch.num_rows
        yield RowBatch(rows, {n: list(map(to_cell, batch.column(i).to_pylist())) for i, n in enumerate(columns)})


def _is_readable_type(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_readable_type(kind.value_type) and not pa.types.is_floating(kind.value_type)
    return not pa.types.is_fixed_size_list(kind)


def _corrupt_file_error(label: str, kind: str, error: Exception) -> InputError:
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return InputError(f"{label}: the {kind} file is corrupt or is no {kind} file ({first}). Export it again.")
