"""Quotas: how many negatives each of several parts gets, and which survivors a part may take."""

from collections.abc import Sequence

import polars as pl

from stages.retrieval.results import NAME


def shares_of(total: int, parts: Sequence[int]) -> list[int]:
    """`total` in proportion to `parts`, by largest remainder; of equal remainders the earlier part gets the unit."""
    whole = [total * part // sum(parts) for part in parts]
    rest = sorted(range(len(parts)), key=lambda i: (-(total * parts[i] % sum(parts)), i))
    for i in rest[: total - sum(whole)]:
        whole[i] += 1
    return whole


def parsed(quotas: Sequence[str]) -> list[tuple[str, int]]:
    """ "dense=4" as ("dense", 4). Raises `ValueError` where one is no NAME=PARTS, a name comes twice or all are 0."""
    found = []
    for quota in quotas:
        name, equals, parts = quota.rpartition("=")
        if not equals or not name.strip() or not parts.strip().isdecimal():
            raise ValueError(f"{quota!r} is no NAME=PARTS, such as dense=4")
        found.append((name.strip(), int(parts)))
    names = [name for name, _ in found]
    if strange := next((name for name in names if not NAME.fullmatch(name)), None):
        raise ValueError(
            f"there is no source {strange!r}: take some of those of `sources` (dense, bm25, random, dense2)"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} comes twice")
    if found and not any(parts for _, parts in found):
        raise ValueError("all parts are 0: give at least one part")
    return found


def with_shares(rows: pl.DataFrame, names: Sequence[str], parts: Sequence[int]) -> pl.DataFrame:
    """`rows` with a column for each of `names`: the shares of its `room` in proportion to `parts`."""
    rooms = rows["room"].unique().sort()
    shares = pl.DataFrame(
        [shares_of(room, parts) for room in rooms], schema=dict.fromkeys(names, pl.Int64), orient="row"
    )
    return rows.join(shares.insert_column(0, rooms), on="room", how="left", maintain_order="left")


def found_by(name: str) -> pl.Expr:
    """Whether the retriever `name` found a pair; several stand as "dense+bm25"."""
    return ("+" + pl.col("source") + "+").str.contains(f"+{name}+", literal=True)
