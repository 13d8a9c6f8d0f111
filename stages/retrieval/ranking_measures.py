"""How well the first encoder ranks the known positives of a table, beside BM25 and chance, on a sample."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.arrays import Floats, Ints
from stages.core.hashing import sample_by_hash
from stages.embedding.encoder_fit import RankingMeasures
from stages.embedding.lookup import read_text_blocks
from stages.retrieval.bm25 import Bm25Search
from stages.retrieval.dense import DenseRetriever
from stages.statistics.bootstrap import run_paired_bootstrap

MAX_QUERIES = 500
"""Train queries that BM25 is compared on, sampled by hash."""
MAX_DOCUMENTS = 20_000
"""Documents that they are ranked among: their positives, and others sampled by hash. BM25 reads 20,000 in seconds."""
_MAX_RECALL_DEPTH = 100
_RECALL_DEPTH_SHARE = 0.1
"""Of the documents, at most: among fewer, a recall at 100 would say nothing."""
_N_RESAMPLES = 2_000


def measure_ranking(
    queries: pl.DataFrame, qrels: pl.DataFrame, dense: DenseRetriever, corpus: Path
) -> RankingMeasures | None:
    """The measures of a sample of the train queries (query_id, query, split, group) that have a positive.

    None if there are none.
    """
    train = queries.with_row_index("query_row").filter(pl.col("split") == "train").select("query_id", "query_row")
    documents = pl.DataFrame({"doc_id": dense.doc_ids}).with_row_index("document_row")
    positives = qrels.filter(pl.col("relevance") > 0).join(train, on="query_id").join(documents, on="doc_id")
    wanted = sample_by_hash(positives["query_id"], MAX_QUERIES, "encoder_fit")
    positives = positives.filter(pl.col("query_id").is_in(wanted)).sort("query_row", "document_row")
    if positives.is_empty():
        return None
    query_rows, document_rows = (positives[name].to_numpy().astype(np.int64) for name in ("query_row", "document_row"))
    sampled, row = np.unique(query_rows, return_inverse=True)
    ranked = sample_documents(dense.doc_ids, np.unique(document_rows))
    column = np.searchsorted(ranked, document_rows)
    vectors = dense.read_queries(sampled)
    scores = np.concatenate([vectors @ block.T for block in dense.read_document_blocks(ranked)], axis=1)
    dense_ranks = rank_positives(scores, row, column)
    depth = max(1, min(_MAX_RECALL_DEPTH, int(_RECALL_DEPTH_SHARE * len(ranked))))
    texts = queries["query"].gather(sampled).to_list()
    bm25_ranks = _rank_by_bm25(texts, _read_sampled_documents(corpus, ranked), row, column, max(depth, 10))
    groups = queries["group"].gather(sampled).to_numpy()
    return summarise_ranks(dense_ranks, bm25_ranks, row, groups, len(ranked), depth)


def measure_candidates(candidates: pl.LazyFrame, queries: pl.DataFrame, qrels: pl.DataFrame) -> dict[str, Any]:
    """How high each source that gives its first ranks has the positives of all train queries.

    source -> number of queries, hit_at_10, mrr_at_10 and recall_at_100 (or less, where a source gives fewer).
    """
    train = queries.filter(pl.col("split") == "train").select("query_id")
    positives = qrels.filter(pl.col("relevance") > 0).select("query_id", "doc_id").join(train, on="query_id")
    listed = candidates.filter(pl.col("rank") <= _MAX_RECALL_DEPTH, pl.col("source") != "random")
    sources = listed.filter(pl.col("rank") == 1).select("source").unique()
    n_positives = positives.group_by("query_id").len("n_positives").lazy()
    by_query = (
        listed.join(positives.lazy(), on=["query_id", "doc_id"])
        .group_by("source", "query_id")
        .agg(best=pl.col("rank").min(), n_found=pl.len())
        .join(n_positives, on="query_id")
    )
    is_high = pl.col("best") <= 10
    sums = by_query.group_by("source").agg(
        hits=is_high.sum(),
        reciprocal_ranks=(1 / pl.col("best")).filter(is_high).sum(),
        recalls=(pl.col("n_found") / pl.col("n_positives")).sum(),
    )
    n_queries = positives["query_id"].n_unique()
    found = sources.join(sums, on="source", how="left").sort("source").collect().fill_null(0) if n_queries else None
    return {
        source: {
            "queries": n_queries,
            "hit_at_10": round(hits / n_queries, 4),
            "mrr_at_10": round(reciprocal_ranks / n_queries, 4),
            "recall_at_100": round(recalls / n_queries, 4),
        }
        for source, hits, reciprocal_ranks, recalls in (() if found is None else found.rows())
    }


def summarise_ranks(
    dense_ranks: Ints, bm25_ranks: Ints, row: Ints, groups: NDArray[Any], n_documents: int, depth: int
) -> RankingMeasures:
    """The measures of the ranks, from 1, of the positives of the queries `row` (rising, from 0; every query has one).

    A rank of 0 means that the positive was not found.
    """
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    counts = np.diff(np.r_[starts, len(row)])

    def measure(ranks: Ints) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        best = np.minimum.reduceat(np.where(ranks > 0, ranks, n_documents + 1), starts)
        is_found = (ranks > 0) & (ranks <= depth)
        recalls = np.add.reduceat(is_found, starts, dtype=np.float64) / counts
        return best <= 10, np.where(best <= 10, 1 / best, 0.0).astype(np.float64), recalls

    hits, reciprocal_ranks, recalls = measure(dense_ranks)
    _, bm25_reciprocal_ranks, bm25_recalls = measure(bm25_ranks)
    difference = run_paired_bootstrap(
        (reciprocal_ranks - bm25_reciprocal_ranks)[:, None], groups, n_resamples=_N_RESAMPLES, seed=0
    )[0]

    def round_4(value: float) -> float:
        return round(float(value), 4)

    return RankingMeasures(
        len(starts),
        n_documents,
        round_4(hits.mean()),
        round_4(reciprocal_ranks.mean()),
        depth,
        round_4(recalls.mean()),
        round_4(depth / n_documents),
        round_4(bm25_reciprocal_ranks.mean()),
        round_4(bm25_recalls.mean()),
        round_4(difference.difference),
        None if difference.low is None else round_4(difference.low),
        None if difference.high is None else round_4(difference.high),
    )


def rank_positives(scores: Floats, row: Ints, column: Ints) -> Ints:
    """The ranks, from 1, of the documents `column` in `scores` [queries, documents]; ties in the order of columns."""
    ranks = np.empty(len(row), np.int64)
    for i, (query, document) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        line, score = scores[query], scores[query, document]
        ranks[i] = 1 + (line > score).sum() + (line[:document] == score).sum()
    return ranks


def _rank_by_bm25(queries: list[str], documents: list[str], row: Ints, column: Ints, depth: int) -> Ints:
    """The ranks of the documents `column` for the queries `row`; 0 if it is not among the first `depth`."""
    found = Bm25Search(queries, documents).search(np.arange(len(queries)), depth)
    pairs = zip(found.query_index.tolist(), found.document_index.tolist(), strict=True)
    ranks = dict(zip(pairs, found.rank.tolist(), strict=True))
    return np.array([ranks.get(pair, 0) for pair in zip(row.tolist(), column.tolist(), strict=True)], np.int64)


def sample_documents(doc_ids: pl.Series, positives: Ints) -> Ints:
    """The rows of at most `MAX_DOCUMENTS` documents, `positives` among them, rising."""
    if len(doc_ids) <= MAX_DOCUMENTS:
        return np.arange(len(doc_ids))
    n_others = max(MAX_DOCUMENTS - len(positives), 0)
    others = doc_ids.is_in(sample_by_hash(doc_ids, n_others, "encoder_fit")).arg_true().to_numpy()
    return np.union1d(positives, others).astype(np.int64)


def _read_sampled_documents(corpus: Path, rows: Ints) -> list[str]:
    """The texts of these rows of the corpus, which rise."""
    texts: list[str] = []
    start = 0
    for block in read_text_blocks(corpus, "document"):
        first, last = np.searchsorted(rows, [start, start + len(block)])
        texts += [block[i - start] for i in rows[first:last].tolist()]
        start += len(block)
    return texts
