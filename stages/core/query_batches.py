"""Going through a table by blocks of queries, so that memory depends on the block and not on the table."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import polars as pl

BatchResultT = TypeVar("BatchResultT")

N_THREADS = 2
"""Blocks that are processed at once while others are written; the interpreter lock makes more useless."""


def iter_query_batches(query_ids: pl.Series, n_rows: int, rows_per_batch: int) -> Iterator[pl.Series]:
    """Cut the sorted `query_ids` so that a block meets about `rows_per_batch` of a table's `n_rows` rows."""
    size = max(1, rows_per_batch * len(query_ids) // max(n_rows, 1))
    for start in range(0, len(query_ids), size):
        yield query_ids[start : start + size]


def collect_query_batch(table: pl.LazyFrame, batch: pl.Series) -> pl.DataFrame:
    """The rows of a block's queries; other row groups are skipped if the file is sorted by query_id."""
    return table.filter(pl.col("query_id").is_between(pl.lit(batch[0]), pl.lit(batch[-1]))).collect()


def map_query_batches(
    function: Callable[[pl.Series], BatchResultT], batches: Iterable[pl.Series]
) -> Iterator[BatchResultT]:
    """`function` of each block, in their order, by THREADS: one more block than these is held at most."""
    pending: deque[Future[BatchResultT]] = deque()
    with ThreadPoolExecutor(N_THREADS) as pool:
        for batch in batches:
            pending.append(pool.submit(function, batch))
            if len(pending) == N_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def sort_by_score(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as lists: by query, best score first, equal ones by doc_id."""
    return rows.sort("query_id", "score", "doc_id", descending=[False, True, False])
