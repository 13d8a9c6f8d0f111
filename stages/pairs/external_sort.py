"""Sort more rows than fit in memory: they are spilled to one file for each range of keys, and sorted range by range.

Ours stays: the peak memory of polars' streaming sort grows with the table (2.1 GiB at 1 GB, 4.1 at 2 GB), and DuckDB,
which spills too, holds 1.2 times ours at 2 GB; in a trial the whole step took more time and memory with it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.schemas import to_arrow_table

MEMORY_BUDGET_BYTES = 96 << 20
"""Bytes of rows that a buffer holds in memory, and bytes of a range that is sorted."""
_GROUP_BYTES, _GROUP_ROWS = 48 << 20, 1 << 17


class SpillBuffer:
    """Rows that are added in any order and read back in buckets; below the memory budget nothing is written to disk."""

    def __init__(self, folder: Path, memory_budget: int = MEMORY_BUDGET_BYTES) -> None:
        self._folder = folder
        self._budget = memory_budget
        self._frames: list[pl.DataFrame] = []
        self._bytes = 0
        self._files: dict[int, tuple[Any, Any]] = {}
        self.total_bytes = 0

    def add(self, frame: pl.DataFrame, bucket: pl.Expr) -> None:
        """Add rows; `bucket` computes each row's bucket, a small number."""
        size = int(frame.estimated_size())
        self._frames.append(frame.with_columns(bucket.cast(pl.UInt32).alias("_bucket")))
        self._bytes += size
        self.total_bytes += size
        if self._bytes > self._budget:
            self._flush()

    def read_buckets(self) -> Iterator[pl.DataFrame]:
        """All rows, bucket after bucket (in one frame if nothing was spilled). No rows can be added afterwards."""
        if not self._files:
            if self._frames:
                yield pl.concat(self._frames).drop("_bucket")
            return
        self._flush()
        for writer, sink in self._files.values():
            writer.close()
            sink.close()
        for number in sorted(self._files):
            yield pl.read_ipc_stream(self._path(number))
        self.clear()

    def clear(self) -> None:
        """Delete the files."""
        for number in self._files:
            self._path(number).unlink(missing_ok=True)
        self._files = {}

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04d}.arrow"

    def _flush(self) -> None:
        if not self._frames:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        frame, self._frames, self._bytes = pl.concat(self._frames), [], 0
        for (number,), part in frame.partition_by("_bucket", as_dict=True).items():
            table = part.drop("_bucket").to_arrow()
            if number not in self._files:
                sink = pa.OSFile(str(self._path(int(number))), "wb")
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._files[int(number)] = (pa.ipc.new_stream(sink, table.schema, options=options), sink)
            self._files[int(number)][0].write_table(table)


def key_bucket() -> pl.Expr:
    """The bucket of a row by the high bits of its `key` (a 64-bit hash, so the buckets are even)."""
    return (pl.col("key") // 2**58).cast(pl.UInt32)


def write_sorted(
    path: Path,
    schema: pa.Schema,
    buffer: SpillBuffer,
    transform: Callable[[pl.DataFrame], pl.DataFrame],
    n_positions: int,
    scratch_dir: Path,
) -> int:
    """Write a buffer's rows to a Parquet file in order, with a bounded part in memory; returns their number.

    `transform` turns a bucket's rows into the table's columns plus `position` (0 to `n_positions` - 1), which orders
    them; rows of one position are ordered by the other columns.
    """
    n_ranges = max(1, -(-buffer.total_bytes // MEMORY_BUDGET_BYTES))
    partitioned = SpillBuffer(scratch_dir)
    for bucket in buffer.read_buckets():
        partitioned.add(transform(bucket), pl.col("position").cast(pl.UInt64) * n_ranges // max(1, n_positions))
    n_written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in partitioned.read_buckets():
            ordered = part.sort("position", *[name for name in schema.names if name in part.columns])
            n_written += len(ordered)
            write_row_groups(writer, ordered.drop("position"), schema)
    return n_written


def write_row_groups(writer: Any, frame: pl.DataFrame, schema: pa.Schema) -> None:
    """Append a frame in row groups of bounded bytes and rows."""
    sizes = frame.select(pl.sum_horizontal(pl.col(pl.String).str.len_bytes().fill_null(0))).to_series().to_numpy()
    group = np.maximum(np.cumsum(sizes) // _GROUP_BYTES, 0) if len(frame) else np.zeros(0, dtype=np.int64)
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(frame)]
    for start, stop in pairwise(starts):
        if stop > start:
            writer.write_table(to_arrow_table(frame.slice(start, stop - start), schema), row_group_size=_GROUP_ROWS)
