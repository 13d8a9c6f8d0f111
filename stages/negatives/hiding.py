"""Hiding: positives that a bench or a lesson takes away, so that to find them again can be counted or learned."""

from typing import Literal

import polars as pl

from stages.draw import draw

Left = Literal["half", "one"]
"""How many of a query's positives `hide` leaves."""


def hide(positives: pl.DataFrame, seed: int, purpose: str, left: Left = "half") -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) with `hidden`: half of each query's, rounded down, by a hash of the pair; or
    all but one."""
    pairs = positives.select("query_id", "doc_id").iter_rows()
    order = pl.Series("order", [draw(seed, purpose, f"{query}:{document}") for query, document in pairs], pl.UInt64)
    place = pl.col("order").rank("ordinal").over("query_id")
    size = pl.len().over("query_id")
    hidden = place <= size // 2 if left == "half" else place < size
    return positives.with_columns(order).with_columns(hidden=hidden).drop("order")


def hide_one(positives: pl.DataFrame, turn: int) -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) of the questions that have several, and more than `turn`, with `hidden`: the
    one whose turn it is by a hash of the pair; and weight, how many positives the question has."""
    pairs = positives.select("query_id", "doc_id").iter_rows()
    order = pl.Series("order", [draw(0, "fit", f"{query}:{document}") for query, document in pairs], pl.UInt64)
    place, size = pl.col("order").rank("ordinal").over("query_id") - 1, pl.len().over("query_id")
    told = positives.with_columns(order).with_columns(hidden=place == turn, weight=size.cast(pl.Float32))
    return told.filter(size > max(turn, 1)).drop("order")
