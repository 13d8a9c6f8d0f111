"""Hold out known positives, so that finding them again can be counted or learned."""

from typing import Literal

import polars as pl

from stages.core.hashing import stable_hash

KeptPositives = Literal["half", "one"]
"""How many of a query's positives `hold_out_positives` keeps."""


def hold_out_positives(positives: pl.DataFrame, seed: int, purpose: str, keep: KeptPositives = "half") -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) with `held_out`, chosen by a hash of the pair.

    `keep` "half": half of each query's positives are held out, rounded down; "one": all but one.
    """
    hash_rank, n_positives = _rank_by_hash(positives, seed, purpose), pl.len().over("query_id")
    return positives.with_columns(held_out=hash_rank < (n_positives // 2 if keep == "half" else n_positives - 1))


def hold_out_one(positives: pl.DataFrame, round_index: int) -> pl.DataFrame:
    """`positives` (query_id, doc_id, ...) with one of each query held out, another one in each round.

    Adds `held_out` and `weight`, the number of the query's positives. Queries with a single positive are left out, and
    those with no more than `round_index`.
    """
    hash_rank, n_positives = _rank_by_hash(positives, 0, "fit"), pl.len().over("query_id")
    marked = positives.with_columns(held_out=hash_rank == round_index, weight=n_positives.cast(pl.Float32))
    return marked.filter(n_positives > max(round_index, 1))


def _rank_by_hash(positives: pl.DataFrame, seed: int, purpose: str) -> pl.Series:
    """The rank of each pair among its query's, from 0, by a hash."""
    pairs = positives.select("query_id", "doc_id").iter_rows()
    hashes = pl.Series(
        "hash", [stable_hash(seed, purpose, f"{query}:{document}") for query, document in pairs], pl.UInt64
    )
    rank = pl.col("hash").rank("ordinal").over("query_id").cast(pl.Int64)
    return positives.select("query_id", hashes).select(rank - 1).to_series()
