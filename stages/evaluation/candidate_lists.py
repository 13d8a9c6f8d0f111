"""The candidate lists that every system ranks: the retriever's top k, with and without the missing positives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stages.core.hashing import sample_by_hash
from stages.core.schemas import (
    CANDIDATES,
    NEAR_DUPLICATES,
    PAIR_COLUMNS,
    QRELS,
    QRELS_SCORED,
    QUERIES,
    read_table,
    scan_table,
)


def sample_evaluation_queries(
    queries: pl.DataFrame, qrels: pl.DataFrame, split: str, max_queries: int, seed: int
) -> tuple[pl.DataFrame, int]:
    """The queries of `split` with a positive, at most `max_queries` of them (0: all), and their number before sampling.

    The sample is by a hash of (seed, query_id), so that it changes little when queries are added or removed. Sorted by
    query_id.
    """
    positives = qrels.filter(pl.col("relevance") > 0).select("query_id").unique()
    eligible_queries = (
        queries.filter(pl.col("split") == split).join(positives, on="query_id", how="semi").sort("query_id")
    )
    if not max_queries or eligible_queries.height <= max_queries:
        return eligible_queries, eligible_queries.height
    sampled_ids = sample_by_hash(eligible_queries["query_id"], max_queries, "evaluate", seed)
    return eligible_queries.filter(pl.col("query_id").is_in(sampled_ids)), eligible_queries.height


def build_top_k_lists(candidates: pl.DataFrame, qrels: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """The `top_k` best candidates of each query: query_id, doc_id, relevance (0 if unjudged), embedder (the score).

    `candidates`: query_id, doc_id, rank, score. Sorted by (query_id, rank).
    """
    return (
        candidates.filter(pl.col("rank") <= top_k)
        .sort("query_id", "rank")
        .join(qrels, on=PAIR_COLUMNS, how="left", maintain_order="left")
        .select("query_id", "doc_id", pl.col("relevance").fill_null(0), embedder="score")
    )


def drop_near_positives(lists: pl.DataFrame, qrels: pl.DataFrame, near_duplicates: pl.DataFrame) -> pl.DataFrame:
    """`lists` without the documents that are near duplicates of a positive of the query and no positives themselves.

    Such a document answers the query as well as the positive does. Nobody judged it, and it would count as a miss. A
    list without its unjudged documents is called condensed (Sakai 2007, "Alternatives to Bpref").
    """
    of_positives = (
        qrels.filter(pl.col("relevance") > 0).join(near_duplicates, on="doc_id").select("query_id", "cluster").unique()
    )
    near_positives = near_duplicates.join(of_positives, on="cluster").select(PAIR_COLUMNS)
    is_dropped = pl.col("is_near_positive").fill_null(False) & (pl.col("relevance") <= 0)
    marked = lists.join(
        near_positives.with_columns(is_near_positive=pl.lit(True)), on=PAIR_COLUMNS, how="left", maintain_order="left"
    )
    return marked.filter(~is_dropped).drop("is_near_positive")


def force_positives(lists: pl.DataFrame, qrels_scored: pl.DataFrame) -> pl.DataFrame:
    """`lists` in which the missing positives of each query replace its last documents that are not positives.

    A list keeps its length. If not all missing positives fit, the most relevant are used, then those with the higher
    score, then by doc_id. `qrels_scored`: query_id, doc_id, relevance, score. The columns are those of
    `build_top_k_lists`; sorted by (query_id, embedder descending, doc_id).
    """
    is_positive = pl.col("relevance") > 0
    missing_positives = (
        qrels_scored.filter(is_positive)
        .join(lists, on=PAIR_COLUMNS, how="anti")
        .join(lists.select("query_id").unique(), on="query_id", how="semi")
        .select("query_id", "doc_id", "relevance", embedder="score", priority=pl.lit(1))
    )
    present = lists.with_columns(priority=pl.when(is_positive).then(2).otherwise(0))
    list_sizes = lists.group_by("query_id").agg(size=pl.len())
    sort_columns = ["query_id", "priority", "relevance", "embedder", "doc_id"]
    return (
        pl.concat([present, missing_positives], how="vertical_relaxed")
        .sort(sort_columns, descending=[False, True, True, True, False])
        .join(list_sizes, on="query_id", how="left", maintain_order="left")
        .filter(pl.int_range(pl.len()).over("query_id") < pl.col("size"))
        .sort("query_id", "embedder", "doc_id", descending=[False, True, False])
        .select(lists.columns)
    )


class CandidateLists(NamedTuple):
    """The evaluated queries, their qrels, and the lists that every system ranks."""

    queries: pl.DataFrame
    """split, query_id, query, group; sorted by split and query_id."""
    qrels: pl.DataFrame
    """query_id, doc_id, relevance: all qrels of these queries."""
    lists: pl.DataFrame
    """list, query_id, doc_id, relevance, embedder; the rows of a query are consecutive."""
    n_queries_available: dict[str, int]
    """The number of queries in each split before sampling."""

    def exclude_queries(self, query_ids: pl.Series) -> "CandidateLists":
        """The same without some of the queries."""
        keep = ~pl.col("query_id").is_in(query_ids.implode())
        return self._replace(**{name: getattr(self, name).filter(keep) for name in ("queries", "qrels", "lists")})

    def select_unique_pairs(self) -> pl.DataFrame:
        """The distinct (query_id, doc_id) of all lists, sorted."""
        return self.lists.select("query_id", "doc_id").unique().sort("query_id", "doc_id")


def build_candidate_lists(
    inputs: Mapping[str, Path],
    splits: Sequence[str],
    *,
    top_k: int,
    max_queries: int,
    seed: int,
    include_forced: bool = True,
    include_raw: bool = False,
) -> CandidateLists:
    """The lists of `splits` from the tables queries, qrels, candidates, qrels_scored and near_duplicates.

    The lists are condensed (`drop_near_positives`) if there are `near_duplicates` among the inputs. `include_forced`
    adds the lists of `force_positives`, which need `qrels_scored`; `include_raw` those that are not condensed.
    """
    queries = read_table(inputs["queries"], QUERIES)
    qrels = read_table(inputs["qrels"], QRELS)
    samples = {split: sample_evaluation_queries(queries, qrels, split, max_queries, seed) for split in splits}
    sampled_queries = pl.concat(sample for sample, _ in samples.values())
    query_ids = sampled_queries.lazy().select("query_id")
    candidates = (
        scan_table(inputs["candidates"], CANDIDATES)
        .filter((pl.col("source") == "dense") & (pl.col("rank") <= top_k))
        .join(query_ids, on="query_id", how="semi")
        .collect()
    )
    lists = {
        split: build_top_k_lists(candidates.join(sample, on="query_id", how="semi"), qrels, top_k)
        for split, (sample, _) in samples.items()
    }
    raw_lists = {f"{split}_raw": plain for split, plain in lists.items()} if include_raw else {}
    if "near_duplicates" in inputs:
        near_duplicates = read_table(inputs["near_duplicates"], NEAR_DUPLICATES)
        lists = {split: drop_near_positives(plain, qrels, near_duplicates) for split, plain in lists.items()}
    if include_forced:
        qrels_scored = (
            scan_table(inputs["qrels_scored"], QRELS_SCORED).join(query_ids, on="query_id", how="semi").collect()
        )
        lists |= {f"{split}_forced": force_positives(plain, qrels_scored) for split, plain in lists.items()}
    lists |= raw_lists
    return CandidateLists(
        sampled_queries.select("split", "query_id", "query", "group"),
        qrels.join(sampled_queries, on="query_id", how="semi"),
        pl.concat(frame.select(pl.lit(name).alias("list"), pl.all()) for name, frame in lists.items()),
        {split: total for split, (_, total) in samples.items()},
    )
