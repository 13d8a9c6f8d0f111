"""Going through a table by blocks of queries, so that memory depends on the block and not on the table."""

from collections.abc import Iterator

import polars as pl


def query_blocks(query_ids: pl.Series, rows: int, rows_a_block: int) -> Iterator[pl.Series]:
    """Cut the sorted `query_ids` so that a block meets about `rows_a_block` of a table's `rows` rows."""
    size = max(1, rows_a_block * len(query_ids) // max(rows, 1))
    for start in range(0, len(query_ids), size):
        yield query_ids[start : start + size]


def of_block(table: pl.LazyFrame, block: pl.Series) -> pl.DataFrame:
    """The rows of a block's queries; row groups outside are skipped where the file is sorted by query_id."""
    return table.filter(pl.col("query_id").is_between(pl.lit(block[0]), pl.lit(block[-1]))).collect()


def ordered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as lists: by query, best score first, equal ones by doc_id."""
    return rows.sort("query_id", "score", "doc_id", descending=[False, True, False])
