"""Samplings: in which order a query's survivors are looked at, and up to how many are taken in each of its bands.

A draw is by a hash of (seed, query_id, doc_id): it does not depend on other queries, nor on where a document stands, so
one that comes or goes changes one place.
"""

import numpy as np
import polars as pl

from stages.core.hashing import stable_hash
from stages.mining.sampling.params import Params
from stages.mining.sampling.quotas import add_quota_columns
from stages.retrieval.results import is_found_by

SIMANS_A, SIMANS_B = 100.0, 0.0
"""SimANS' weights are exp(-A (score - positive's - B)^2). Its authors' A = 0.5 is for inner products that lie tens
apart; of cosines it would make all weights alike."""


def build_eligible_pool(
    survivors: pl.DataFrame, positives: pl.DataFrame, keys: pl.DataFrame, categories: pl.DataFrame | None
) -> pl.DataFrame:
    """Who may be a negative of each query that has a positive: the best first, each text once.

    `survivors`: query_id, doc_id, score, reason, source of negative verdicts; `positives`: query_id, doc_id,
    score, text_key, whose texts are kept out; `keys`: doc_id, text_key. Adds `query` (a number), row, curated,
    room (what curated ones leave of the negatives, see `build_pick_order`), lowest (the score of the query's lowest
    positive) and foreign: by `categories` (doc_id, category) the document is not of a category that a positive of the
    query is of.
    """
    positive_stats = (
        positives.group_by("query_id")
        .agg(positive_score_min=pl.col("score").min())
        .sort("query_id")
        .with_row_index("query")
    )
    pool = survivors.join(positive_stats, on="query_id").join(keys, on="doc_id")
    pool = pool.join(positives, on=["query_id", "text_key"], how="anti")
    pool = pool.with_columns(curated_negative=pl.col("reason") == "curated_negative").drop("reason")
    pool = pool.sort("query", "curated_negative", "score", "doc_id", descending=[False, True, True, False])
    pool = pool.unique(["query", "text_key"], keep="first", maintain_order=True)
    if categories is None:
        return pool.with_columns(foreign=pl.lit(False)).with_row_index("row")
    positive_categories = find_positive_categories(positives, categories).with_columns(own=pl.lit(True))
    pool = pool.join(categories, on="doc_id", how="left").join(
        positive_categories, on=["query_id", "category"], how="left"
    )
    has_category = pl.col("query_id").is_in(positive_categories["query_id"].unique().implode())
    pool = pool.with_columns(foreign=has_category & pl.col("own").is_null()).drop("category", "own")
    return pool.sort(
        "query", "curated_negative", "foreign", "score", "doc_id", descending=[False, True, False, True, False]
    ).with_row_index("row")


def find_positive_categories(positives: pl.DataFrame, categories: pl.DataFrame) -> pl.DataFrame:
    """query_id and category of the positives that have one, each once."""
    return positives.join(categories, on="doc_id").select("query_id", "category").unique()


def build_pick_order(params: Params, pool: pl.DataFrame) -> pl.DataFrame:
    """The rows of `pool` in the order in which they are looked at: row, query, counter, upto, band.

    A row may come up in several bands. It is taken where its query's `counter` stands below `upto`: 0 counts curated
    ones, which come first; then each source of `source_quotas` has a counter, in the order of their names (without:
    one for all); the last band, `rest`, gives room that is left to any, by score.
    """
    n_curated = pl.col("curated_negative").sum().over("query").cast(pl.Int64)
    pool = pool.with_columns(room=(params.num_negatives - n_curated).clip(lower_bound=0))
    non_curated = pool.filter(~pl.col("curated_negative"))
    non_curated = non_curated.with_columns(key=_compute_sort_keys(params, non_curated))
    limit = pl.lit(params.num_negatives, pl.Int64)
    strata = [
        pool.filter("curated_negative").with_columns(counter=pl.lit(0), upto=limit, band=pl.lit("curated_negative"))
    ]
    if params.quotas:
        names = [f"share {number}" for number in range(len(params.quotas))]
        with_quotas = add_quota_columns(non_curated, names, [parts for _, parts in params.quotas])
        for number, (name, _) in enumerate(params.quotas):
            from_source = with_quotas.filter(is_found_by(name)).with_columns(room=pl.col(names[number]))
            strata.append(_order_by_sampling(params, from_source, number + 1))
        strata.append(non_curated.with_columns(counter=pl.lit(len(names) + 1), upto=limit, band=pl.lit("rest")))
    else:
        strata.append(_order_by_sampling(params, non_curated, 1))
    columns = ("query", "row", "counter", "upto", "band")
    return pl.concat([stratum.select(columns) for stratum in strata]).sort("query", maintain_order=True)


def _order_by_sampling(params: Params, rows: pl.DataFrame, counter: int) -> pl.DataFrame:
    """`rows` in the order of the sampling, as a band of its own of which up to `room` are taken."""
    order = rows if params.sampling == "top" else rows.sort("query", "foreign", "key", "doc_id")
    return order.with_columns(counter=pl.lit(counter), upto="room", band=pl.lit(params.sampling))


def _compute_sort_keys(params: Params, rows: pl.DataFrame) -> pl.Series:
    """What is drawn goes by rising key."""
    if params.sampling == "top":
        return pl.Series("key", [0], dtype=pl.UInt64).new_from_index(0, len(rows))
    pairs = rows.select("query_id", "doc_id").iter_rows()
    values = [stable_hash(params.seed, "compose", f"{query_id}:{doc_id}") for query_id, doc_id in pairs]
    draws = pl.Series("key", values, dtype=pl.UInt64)
    return draws if params.sampling != "simans" else compute_simans_keys(draws, rows, SIMANS_A, SIMANS_B)


def compute_simans_keys(hashes: pl.Series, rows: pl.DataFrame, a: float, b: float) -> pl.Series:
    """Keys by which the first n are a draw without replacement with weights exp(-a (score - lowest - b)^2): SimANS.

    The weights are of Zhou et al., "SimANS: Simple Ambiguous Negatives Sampling for Dense Text Retrieval", EMNLP 2022
    (industry); the positive is the query's lowest, as for the mask. Each row runs for a time -log(u) / weight, u from
    its draw, and the earliest are taken (Efraimidis & Spirakis, "Weighted random sampling with a reservoir", 2006). The
    key is the logarithm of that time, so no weight underflows, whatever the scale of the scores.
    """
    uniform = ((hashes.to_numpy() >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    distance = rows["score"].cast(pl.Float64).to_numpy() - rows["positive_score_min"].cast(pl.Float64).to_numpy() - b
    return pl.Series("key", np.log(-np.log(uniform)) + a * distance**2, dtype=pl.Float64)
