"""Peak memory and time of sorting texts that do not fit into memory: the pairs stage's sort, polars or DuckDB.

python -m tests.benchmarks.external_sort ours --gigabytes 2     (polars, or duckdb after `pip install duckdb`)
"""

import argparse
import importlib
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.schemas import ANSWERS
from stages.pairs.external_sort import SpillBuffer, write_sorted

_ROWS_PER_GIGABYTE = 1_000_000
_FRAME_ROWS = 5000


def generate_frames(n_rows: int) -> Iterator[pl.DataFrame]:
    """Rows of 1,000 characters in random order; `position` and `key` say the right one."""
    random = np.random.default_rng(0)
    pool = random.integers(97, 123, 4_000_000, dtype=np.uint8).tobytes().decode()
    order = random.permutation(n_rows).astype(np.uint64)
    for start in range(0, n_rows, _FRAME_ROWS):
        part = order[start : start + _FRAME_ROWS]
        at = (part * 997 % 3_990_000).tolist()
        texts = [f"{pool[place : place + 1000]}{number}" for place, number in zip(at, part.tolist(), strict=True)]
        yield pl.DataFrame({"query_id": part.astype(str), "answer": texts, "position": part})


def sort_ours(n_rows: int, folder: Path) -> None:
    """Through buckets of files, as the stage does."""
    buffer = SpillBuffer(folder / "rows")
    for frame in generate_frames(n_rows):
        buffer.add(frame, pl.col("position") * 64 // n_rows)
    write_sorted(folder / "sorted.parquet", ANSWERS, buffer, lambda frame: frame, n_rows, folder / "ranges")


def sort_polars(n_rows: int, folder: Path) -> None:
    """Through polars' streaming engine."""
    frames = generate_frames(n_rows)
    first = next(frames).to_arrow()
    with pa.ipc.new_file(
        str(folder / "rows.arrow"), first.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(frame.to_arrow())
    rows = pl.scan_ipc(folder / "rows.arrow").sort("position")
    rows.drop("position").sink_parquet(folder / "sorted.parquet", compression="zstd", engine="streaming")


def sort_duckdb(n_rows: int, folder: Path) -> None:
    """Through DuckDB with 512 MB of memory, read and written in batches."""
    options = {"memory_limit": "512MB", "threads": "2", "temp_directory": str(folder / "duckdb")}
    connection = importlib.import_module("duckdb").connect(config=options)
    schema = pa.schema([*ANSWERS, ("position", pa.uint64())])
    frames = generate_frames(n_rows)
    batches = (batch for frame in frames for batch in frame.to_arrow().cast(schema).to_batches())
    rows = connection.from_arrow(pa.RecordBatchReader.from_batches(schema, batches)).order("position")
    with pq.ParquetWriter(folder / "sorted.parquet", ANSWERS, compression="zstd") as writer:
        for batch in rows.project("query_id, answer").to_arrow_reader(20_000):
            writer.write_batch(batch.cast(ANSWERS))


def main() -> None:
    """Sort, check the order, print peak memory and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"ours": sort_ours, "polars": sort_polars, "duckdb": sort_duckdb}
    parser.add_argument("way", choices=ways)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the texts")
    given = parser.parse_args()
    n_rows = int(given.gigabytes * _ROWS_PER_GIGABYTE)
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        ways[given.way](n_rows, Path(name))
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        ids = pl.read_parquet(Path(name) / "sorted.parquet", columns=["query_id"])["query_id"].cast(pl.UInt64)
        assert len(ids) == n_rows and ids.is_sorted()
    busy = used.ru_utime + used.ru_stime
    print(f"{given.way}: peak RSS {used.ru_maxrss / 2**20:.2f} GiB, {seconds:.0f} s, {busy:.0f} s of processor time")


if __name__ == "__main__":
    main()
