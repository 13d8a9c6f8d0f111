"""Parquet and Arrow (IPC files, streams, Feather 2), read batch by batch."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.readers.base import Batch, as_cell

_ROWS = 4096


def read_parquet(path: Path, label: str) -> Iterator[Batch]:
    """Read a Parquet file; columns of numbers in lists (embeddings) are passed over."""
    with pa.OSFile(os.fsencode(path)) as file:
        try:
            table = pq.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if _readable(field.type)]
            yield from _batches(table.iter_batches(_ROWS, columns=columns), columns)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(label, "Parquet", error) from error


def read_arrow(path: Path, label: str) -> Iterator[Batch]:
    """Read an Arrow IPC file or stream."""
    with pa.OSFile(os.fsencode(path)) as file:
        try:
            start = file.read(6)
            file.seek(0)
            if start == b"ARROW1":
                reader = pa.ipc.open_file(file)
                found = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(file)
                found = iter(reader)
            columns = [field.name for field in reader.schema if _readable(field.type)]
            pieces = (batch.slice(i, _ROWS) for batch in found for i in range(0, batch.num_rows, _ROWS))
            yield from _batches((batch.select(columns) for batch in pieces), columns)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(label, "Arrow", error) from error


def _batches(found: Iterable[Any], columns: list[str]) -> Iterator[Batch]:
    number = 0
    yield Batch([], {name: [] for name in columns})  # a table without rows still says which columns there are
    for batch in found:
        rows = list(range(number + 1, number + 1 + batch.num_rows))
        number += batch.num_rows
        yield Batch(rows, {n: list(map(as_cell, batch.column(i).to_pylist())) for i, n in enumerate(columns)})


def _readable(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _readable(kind.value_type) and not pa.types.is_floating(kind.value_type)
    return not pa.types.is_fixed_size_list(kind)


def _corrupt(label: str, kind: str, error: Exception) -> InputError:
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return InputError(f"{label}: the {kind} file is corrupt or is no {kind} file ({first}). Export it again.")
