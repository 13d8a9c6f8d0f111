"""Quotas: the number of negatives that each source supplies."""

from collections.abc import Sequence

import polars as pl

from stages.retrieval.results import SOURCE_NAME_PATTERN


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights` by largest remainder; of equal remainders the first gets the unit."""
    shares = [total * part // sum(weights) for part in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % sum(weights)), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def parse_quotas(quotas: Sequence[str]) -> list[tuple[str, int]]:
    """Parse "dense=4" as ("dense", 4). Raises `ValueError` for another form, a repeated name, or if all parts are
    0."""
    source_quotas = []
    for quota in quotas:
        name, equals, parts = quota.rpartition("=")
        if not equals or not name.strip() or not parts.strip().isdecimal():
            raise ValueError(f"{quota!r} must have the form NAME=PARTS, such as dense=4")
        source_quotas.append((name.strip(), int(parts)))
    names = [name for name, _ in source_quotas]
    if unknown_source := next((name for name in names if not SOURCE_NAME_PATTERN.fullmatch(name)), None):
        raise ValueError(
            f"there is no source {unknown_source!r}: use those of [search] sources (dense, bm25, random, dense2)"
        )
    if repeated_source := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{repeated_source!r} is given twice")
    if source_quotas and not any(parts for _, parts in source_quotas):
        raise ValueError("all parts are 0: give at least one part")
    return source_quotas


def add_quota_columns(rows: pl.DataFrame, names: Sequence[str], weights: Sequence[int]) -> pl.DataFrame:
    """`rows` with a column for each of `names`: its share of the row's `quota`, in proportion to `weights`."""
    totals = rows["quota"].unique().sort()
    shares = pl.DataFrame(
        [apportion(total, weights) for total in totals], schema=dict.fromkeys(names, pl.Int64), orient="row"
    )
    return rows.join(shares.insert_column(0, totals), on="quota", how="left", maintain_order="left")
