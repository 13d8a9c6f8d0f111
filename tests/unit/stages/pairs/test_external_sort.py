"""Rows sorted through files are the rows sorted in memory."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from stages.core.schemas import ANSWERS
from stages.pairs import external_sort
from stages.pairs.external_sort import SpillBuffer, key_bucket, write_sorted


def rows(count: int) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2**64, count, dtype=np.uint64)
    return pl.DataFrame({"key": keys, "answer": [f"text {number % 97}" for number in range(count)]})


def test_spilled_rows_are_read_back(tmp_path: Path) -> None:
    frame = rows(1000)
    small, large = SpillBuffer(tmp_path / "a", memory_budget=2000), SpillBuffer(tmp_path / "b")
    for part in frame.iter_slices(100):
        small.add(part, key_bucket())
        large.add(part, key_bucket())
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert pl.concat(small.read_buckets()).sort("key").equals(frame.sort("key"))
    assert pl.concat(large.read_buckets()).sort("key").equals(frame.sort("key"))
    assert list((tmp_path / "a").iterdir()) == []


def test_sorting_in_parts_is_sorting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = rows(1000)
    order = frame.select("key").sort("key").with_row_index("position")

    def written(name: str) -> pl.DataFrame:
        held = SpillBuffer(tmp_path / name)
        held.add(frame, key_bucket())

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            joined = bucket.join(order, on="key")
            return joined.select("position", "answer", query_id=pl.col("key").cast(pl.String))

        path = tmp_path / f"{name}.parquet"
        assert write_sorted(path, ANSWERS, held, shape, len(order), tmp_path / f"{name}-sorted") == 1000
        return pl.read_parquet(path)

    whole = written("whole")
    assert whole["query_id"].to_list() == [str(key) for key in sorted(frame["key"].to_list())]
    monkeypatch.setattr(external_sort, "MEMORY_BUDGET_BYTES", 3000)
    monkeypatch.setattr(external_sort, "_GROUP_BYTES", 1000)
    assert written("parts").equals(whole)
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups > 10
