"""Slices: other rows' documents at random, without any model, as MasteringRAG's build_qa_samples takes them.

That function cuts the other rows' answers into slices of equal size and writes the question once with each of the first
few. Here the documents of a query are drawn by hash (see `sample_random_negatives`). It is the baseline that people
start from.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.context import Summary
from stages.core.hashing import stable_hash
from stages.core.query_batches import iter_query_batches
from stages.mining.candidates.documents import compute_text_keys
from stages.mining.candidates.known_positives import pool_positives
from stages.mining.sampling.sampler import SampledBlock

if TYPE_CHECKING:
    from stages.mining.sampling.stage import Params

NEGATIVES_PER_BLOCK = 100_000
NO_FLAGGED_POSITIVES = pl.DataFrame(schema={"query_id": pl.String, "finding": pl.String})


class RandomNegatives:
    """Draws the negatives of sampling `slices`, block by block."""

    def __init__(self, params: "Params", queries: pl.DataFrame, inputs: Mapping[str, Path]) -> None:
        self._params = params
        self._queries = queries
        self._keys = compute_text_keys(inputs["corpus"])
        qrels = schemas.read_table(inputs["qrels"], schemas.QRELS)
        self._positives = qrels.filter(pl.col("relevance") > 0).join(queries, on="query_id", how="semi")
        everyone = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"])
        self._known = pool_positives(everyone, qrels).join(self._keys, on="doc_id")
        self._hash_ring = build_text_hash_ring(self._keys, params.seed)

    @property
    def stats(self) -> Summary:
        """Nothing beyond what the tally counts."""
        return {}

    def sample_blocks(self) -> Iterator[SampledBlock]:
        """All train queries, in query_id order."""
        rows = len(self._queries) * self._params.n_requested
        for block in iter_query_batches(self._queries["query_id"], rows, NEGATIVES_PER_BLOCK):
            queries = self._queries.filter(pl.col("query_id").is_in(block.implode()))
            positives = (
                self._positives.join(queries, on="query_id", how="semi")
                .join(self._keys, on="doc_id")
                .sort("query_id", "relevance", "doc_id", descending=[False, True, False])
                .unique(["query_id", "text_key"], keep="first", maintain_order=True)
                .select("query_id", "doc_id", "text_key")
            )
            known = self._known.join(positives, on="query_id", how="semi").select("query_id", "text_key").unique()
            yield SampledBlock(
                queries,
                positives,
                sample_random_negatives(self._params, known, self._hash_ring),
                0,
                NO_FLAGGED_POSITIVES,
            )


def build_text_hash_ring(keys: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The texts of a corpus (doc_id, text_key) laid on a circle by a hash: point, text_key, doc_id, by rising point.

    Equal texts stand once, under the smallest doc_id, by which they are laid.
    """
    texts = keys.group_by("text_key").agg(pl.col("doc_id").min())
    points = [stable_hash(seed, "slices of texts", doc_id) for doc_id in texts["doc_id"]]
    return texts.select(pl.Series("point", points, dtype=pl.UInt64), "text_key", "doc_id").sort("point", "doc_id")


def sample_random_negatives(params: "Params", positive_texts: pl.DataFrame, hash_ring: pl.DataFrame) -> pl.DataFrame:
    """query_id, line, doc_id, band: `slices` x `slice` texts for each query of `positive_texts` (query_id, text_key).

    `positive_texts` holds the texts of its positives. Each query takes those that follow its own point on the circle,
    without these (consistent hashing, Karger et al. 1997). So a text that comes or goes changes one place, and no query
    costs a look at the whole corpus; over many queries a text comes up as often as any other, give or take one part in
    the root of slices x slice. Where there are too few texts the last slice is short, and there are fewer.
    """
    counts = positive_texts.group_by("query_id").len().sort("query_id")
    points = [stable_hash(params.seed, "slices of queries", query_id) for query_id in counts["query_id"]]
    starts = np.searchsorted(hash_ring["point"].to_numpy(), np.array(points, dtype=np.uint64))
    width = np.minimum(params.n_requested + counts["len"].to_numpy().astype(np.int64), len(hash_ring))
    step = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
    at = (np.repeat(starts, width) + step) % max(len(hash_ring), 1)
    ring_texts: pl.DataFrame = hash_ring.select("text_key", "doc_id")[at].with_columns(
        query_id=counts["query_id"].gather(np.repeat(np.arange(len(counts)), width))
    )
    rank_in_query = pl.int_range(pl.len()).over("query_id")
    negatives = ring_texts.join(positive_texts, on=["query_id", "text_key"], how="anti", maintain_order="left")
    return negatives.filter(rank_in_query < params.n_requested).select(
        "query_id", "doc_id", line=rank_in_query // params.slice, band=pl.lit("slices")
    )
