"""Hiding: positives that a bench or a lesson takes away, so that to find them again can be counted or learned."""

from typing import Literal

import polars as pl

from stages.core.hashing import draw

Left = Literal["half", "one"]
"""How many of a query's positives `hide` leaves."""


def hide(positives: pl.DataFrame, seed: int, purpose: str, left: Left = "half") -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) with `hidden`: half of each query's, rounded down, by a hash of the pair; or
    all but one."""
    place, size = _place(positives, seed, purpose), pl.len().over("query_id")
    return positives.with_columns(hidden=place < (size // 2 if left == "half" else size - 1))


def hide_one(positives: pl.DataFrame, turn: int) -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) of the questions that have several, and more than `turn`, with `hidden`: the
    one whose turn it is by a hash of the pair; and weight, how many positives the question has."""
    place, size = _place(positives, 0, "fit"), pl.len().over("query_id")
    told = positives.with_columns(hidden=place == turn, weight=size.cast(pl.Float32))
    return told.filter(size > max(turn, 1))


def _place(positives: pl.DataFrame, seed: int, purpose: str) -> pl.Series:
    """Where each pair stands among its query's, from 0, by a hash."""
    pairs = positives.select("query_id", "doc_id").iter_rows()
    order = pl.Series("order", [draw(seed, purpose, f"{query}:{document}") for query, document in pairs], pl.UInt64)
    rank = pl.col("order").rank("ordinal").over("query_id").cast(pl.Int64)
    return positives.select("query_id", order).select(rank - 1).to_series()
