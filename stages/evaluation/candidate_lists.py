"""The candidate lists that every system ranks: the retriever's top k, with and without the missing positives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stages.core.hashing import sample_by_hash
from stages.core.schemas import CANDIDATES, PAIR_COLUMNS, QRELS, QRELS_SCORED, QUERIES, read_table, scan_table


def sample_evaluation_queries(
    queries: pl.DataFrame, qrels: pl.DataFrame, split: str, max_queries: int, seed: int
) -> tuple[pl.DataFrame, int]:
    """The queries of `split` that have a positive, at most `max_queries` of them (0: all), and how many there were.

    The sample is by a hash of (seed, query_id), so a query stays in it whatever else comes or goes, as far as the
    size allows. A query without a positive tells nothing about a ranking. Sorted by query_id.
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
    """The `top_k` best candidates of each query: query_id, doc_id, relevance (0 where unjudged), embedder (f32).

    `candidates` (query_id, doc_id, rank, score) are the retriever's; sorted by (query_id, rank).
    """
    return (
        candidates.filter(pl.col("rank") <= top_k)
        .sort("query_id", "rank")
        .join(qrels, on=PAIR_COLUMNS, how="left", maintain_order="left")
        .select("query_id", "doc_id", pl.col("relevance").fill_null(0), embedder="score")
    )


def force_positives(lists: pl.DataFrame, qrels_scored: pl.DataFrame) -> pl.DataFrame:
    """`lists` with every query's missing positives in place of its last documents that are no positives.

    A list keeps its length; where it has less room than there are positives missing, the most relevant come in, then
    those that the retriever scores higher, then by doc_id. `qrels_scored` (query_id, doc_id, relevance, score) gives
    the retriever's score of each. Columns as `build_top_k_lists`; sorted by (query_id, embedder falling, doc_id).
    """
    is_positive = pl.col("relevance") > 0
    missing_positives = (
        qrels_scored.filter(is_positive)
        .join(lists, on=PAIR_COLUMNS, how="anti")
        .join(lists.select("query_id").unique(), on="query_id", how="semi")
        .select("query_id", "doc_id", "relevance", embedder="score", kept=pl.lit(1))
    )
    present = lists.with_columns(kept=pl.when(is_positive).then(2).otherwise(0))
    list_sizes = lists.group_by("query_id").agg(size=pl.len())
    sort_columns = ["query_id", "kept", "relevance", "embedder", "doc_id"]
    return (
        pl.concat([present, missing_positives], how="vertical_relaxed")
        .sort(sort_columns, descending=[False, True, True, True, False])
        .join(list_sizes, on="query_id", how="left", maintain_order="left")
        .filter(pl.int_range(pl.len()).over("query_id") < pl.col("size"))
        .sort("query_id", "embedder", "doc_id", descending=[False, True, False])
        .select(lists.columns)
    )


class CandidateLists(NamedTuple):
    """What is evaluated: the questions, what is relevant to them, and the lists that every system ranks."""

    queries: pl.DataFrame
    """split, query_id, query, group: the evaluated questions, sorted by split and query_id."""
    qrels: pl.DataFrame
    """query_id, doc_id, relevance: all judgements of these questions."""
    lists: pl.DataFrame
    """list (one of LISTS), query_id, doc_id, relevance, embedder; the rows of a question stand together."""
    n_queries_available: dict[str, int]
    """How many questions each split held before the sample."""

    def exclude_queries(self, query_ids: pl.Series) -> "CandidateLists":
        """The same without some of the questions."""
        keep = ~pl.col("query_id").is_in(query_ids.implode())
        return self._replace(**{name: getattr(self, name).filter(keep) for name in ("queries", "qrels", "lists")})

    def select_unique_pairs(self) -> pl.DataFrame:
        """Each (query_id, doc_id) of any list once, sorted."""
        return self.lists.select("query_id", "doc_id").unique().sort("query_id", "doc_id")


def build_candidate_lists(
    inputs: Mapping[str, Path],
    splits: Sequence[str],
    *,
    top_k: int,
    max_queries: int,
    seed: int,
    include_forced: bool = True,
) -> CandidateLists:
    """The lists of `splits` from the tables queries, qrels, candidates and judged, which are read in part only.

    `include_forced`: also the lists with the positives forced in (without it `qrels_scored` is not needed).
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
    if include_forced:
        qrels_scored = (
            scan_table(inputs["qrels_scored"], QRELS_SCORED).join(query_ids, on="query_id", how="semi").collect()
        )
        lists |= {f"{split}_forced": force_positives(plain, qrels_scored) for split, plain in lists.items()}
    return CandidateLists(
        sampled_queries.select("split", "query_id", "query", "group"),
        qrels.join(sampled_queries, on="query_id", how="semi"),
        pl.concat(frame.select(pl.lit(name).alias("list"), pl.all()) for name, frame in lists.items()),
        {split: total for split, (_, total) in samples.items()},
    )
