"""Sampling strategies: the order in which a query's candidates are tried, and the cap of each stratum.

Random choices use a hash of (seed, query_id, doc_id). They do not depend on other queries or on a document's position,
so a document that is added or removed changes at most one negative of a query.
"""

import numpy as np
import polars as pl

from stages.core.hashing import stable_hash
from stages.mining.sampling.params import Params
from stages.mining.sampling.quotas import add_quota_columns
from stages.retrieval.results import is_found_by

SIMANS_A, SIMANS_B = 100.0, 0.0
"""The weights of SimANS are exp(-A (score - positive's score - B)^2). The authors' A = 0.5 is for inner products, which
differ by tens; with cosines it would make all weights nearly equal."""


def build_eligible_pool(
    survivors: pl.DataFrame, positives: pl.DataFrame, keys: pl.DataFrame, categories: pl.DataFrame | None
) -> pl.DataFrame:
    """The candidates that may be a negative of each query with a positive: the best first, each text once.

    `survivors` (query_id, doc_id, score, reason, source) have a negative verdict. Texts of `positives` (query_id,
    doc_id, score, cluster) are left out. `keys`: doc_id, cluster. New columns: query (a number), row,
    curated_negative, positive_score_min, and other_category: the document has none of the categories of the query's
    positives, by `categories` (doc_id, category).
    """
    positive_stats = (
        positives.group_by("query_id")
        .agg(positive_score_min=pl.col("score").min())
        .sort("query_id")
        .with_row_index("query")
    )
    pool = survivors.join(positive_stats, on="query_id").join(keys, on="doc_id")
    pool = pool.join(positives, on=["query_id", "cluster"], how="anti")
    pool = pool.with_columns(curated_negative=pl.col("reason") == "curated_negative").drop("reason")
    pool = pool.sort("query", "curated_negative", "score", "doc_id", descending=[False, True, True, False])
    pool = pool.unique(["query", "cluster"], keep="first", maintain_order=True)
    if categories is None:
        return pool.with_columns(other_category=pl.lit(False)).with_row_index("row")
    positive_categories = find_positive_categories(positives, categories).with_columns(shares_category=pl.lit(True))
    pool = pool.join(categories, on="doc_id", how="left").join(
        positive_categories, on=["query_id", "category"], how="left"
    )
    has_category = pl.col("query_id").is_in(positive_categories["query_id"].unique().implode())
    pool = pool.with_columns(other_category=has_category & pl.col("shares_category").is_null()).drop(
        "category", "shares_category"
    )
    return pool.sort(
        "query", "curated_negative", "other_category", "score", "doc_id", descending=[False, True, False, True, False]
    ).with_row_index("row")


def find_positive_categories(positives: pl.DataFrame, categories: pl.DataFrame) -> pl.DataFrame:
    """The distinct (query_id, category) of the positives with a category."""
    return positives.join(categories, on="doc_id").select("query_id", "category").unique()


def build_pick_order(params: Params, pool: pl.DataFrame) -> pl.DataFrame:
    """The rows of `pool` in the order in which they are tried: query, row, stratum_index, cap, stratum.

    Stratum 0 holds the curated negatives. Then follows a stratum for each source of `source_quotas`, or one for all
    candidates if there are no quotas. With quotas a last stratum `rest` fills what the sources leave, by score. A row
    may be in several strata. `cap` is the number of rows of the stratum that a query may select.
    """
    n_curated = pl.col("curated_negative").sum().over("query").cast(pl.Int64)
    pool = pool.with_columns(quota=(params.num_negatives - n_curated).clip(lower_bound=0))
    non_curated = pool.filter(~pl.col("curated_negative"))
    non_curated = non_curated.with_columns(key=_compute_sort_keys(params, non_curated))
    limit = pl.lit(params.num_negatives, pl.Int64)
    strata = [
        pool.filter("curated_negative").with_columns(
            stratum_index=pl.lit(0), cap=limit, stratum=pl.lit("curated_negative")
        )
    ]
    if params.quotas:
        names = [f"share {number}" for number in range(len(params.quotas))]
        with_quotas = add_quota_columns(non_curated, names, [parts for _, parts in params.quotas])
        for number, (name, _) in enumerate(params.quotas):
            from_source = with_quotas.filter(is_found_by(name)).with_columns(quota=pl.col(names[number]))
            strata.append(_order_by_sampling(params, from_source, number + 1))
        strata.append(non_curated.with_columns(stratum_index=pl.lit(len(names) + 1), cap=limit, stratum=pl.lit("rest")))
    else:
        strata.append(_order_by_sampling(params, non_curated, 1))
    columns = ("query", "row", "stratum_index", "cap", "stratum")
    return pl.concat([stratum.select(columns) for stratum in strata]).sort("query", maintain_order=True)


def _order_by_sampling(params: Params, rows: pl.DataFrame, stratum_index: int) -> pl.DataFrame:
    """`rows` in the order of the sampling strategy, as a stratum with the cap `quota`."""
    order = rows if params.sampling == "top" else rows.sort("query", "other_category", "key", "doc_id")
    return order.with_columns(stratum_index=pl.lit(stratum_index), cap="quota", stratum=pl.lit(params.sampling))


def _compute_sort_keys(params: Params, rows: pl.DataFrame) -> pl.Series:
    """Keys whose ascending order is the order of random choices."""
    if params.sampling == "top":
        return pl.Series("key", [0], dtype=pl.UInt64).new_from_index(0, len(rows))
    pairs = rows.select("query_id", "doc_id").iter_rows()
    values = [stable_hash(params.seed, "compose", f"{query_id}:{doc_id}") for query_id, doc_id in pairs]
    hashes = pl.Series("key", values, dtype=pl.UInt64)
    return hashes if params.sampling != "simans" else compute_simans_keys(hashes, rows, SIMANS_A, SIMANS_B)


def compute_simans_keys(hashes: pl.Series, rows: pl.DataFrame, a: float, b: float) -> pl.Series:
    """Keys whose n smallest are a sample without replacement, with the weights of SimANS.

    The weights are exp(-a (score - positive_score_min - b)^2) (Zhou et al., "SimANS: Simple Ambiguous Negatives
    Sampling for Dense Text Retrieval", EMNLP 2022, industry track). Each row gets a time -log(u) / weight, with u from
    its hash, and the earliest are selected (Efraimidis & Spirakis, "Weighted random sampling with a reservoir", 2006).
    The key is the logarithm of the time, so that no weight underflows at any scale of the scores.
    """
    uniform = ((hashes.to_numpy() >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    distance = rows["score"].cast(pl.Float64).to_numpy() - rows["positive_score_min"].cast(pl.Float64).to_numpy() - b
    return pl.Series("key", np.log(-np.log(uniform)) + a * distance**2, dtype=pl.Float64)
