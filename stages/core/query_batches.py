"""Going through a table by blocks of queries, so that memory depends on the block and not on the table."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import polars as pl

Made = TypeVar("Made")

THREADS = 2
"""Blocks made at once, while others are written; what holds the interpreter leaves little for more."""


def query_blocks(query_ids: pl.Series, rows: int, rows_a_block: int) -> Iterator[pl.Series]:
    """Cut the sorted `query_ids` so that a block meets about `rows_a_block` of a table's `rows` rows."""
    size = max(1, rows_a_block * len(query_ids) // max(rows, 1))
    for start in range(0, len(query_ids), size):
        yield query_ids[start : start + size]


def of_block(table: pl.LazyFrame, block: pl.Series) -> pl.DataFrame:
    """The rows of a block's queries; row groups outside are skipped where the file is sorted by query_id."""
    return table.filter(pl.col("query_id").is_between(pl.lit(block[0]), pl.lit(block[-1]))).collect()


def in_order(make: Callable[[pl.Series], Made], blocks: Iterable[pl.Series]) -> Iterator[Made]:
    """`make` of each block, in their order, by THREADS: one more block than these is held at most."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for block in blocks:
            waiting.append(pool.submit(make, block))
            if len(waiting) == THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ordered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as lists: by query, best score first, equal ones by doc_id."""
    return rows.sort("query_id", "score", "doc_id", descending=[False, True, False])
