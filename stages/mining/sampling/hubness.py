"""A limit on the number of queries that a document may be a negative of, because some documents are hubs.

A hub is among the nearest neighbours of very many points; high dimensions have such points (Radovanovic et al., "Hubs
in Space", JMLR 2010). A reranker that sees a hub as a negative of many queries learns that it is always wrong.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.hashing import stable_hash

ProposalFunction = Callable[["HubCap", pl.Series | None], pl.DataFrame]
"""The negatives that queries (by number; None: all) select under a cap, without curated ones: query, document,
score."""


class HubCap:
    """The last pair of each document that is accepted, ordered by score and then by a hash of the pair's ids."""

    def __init__(self, query_ids: pl.Series, doc_ids: pl.Series, seed: int) -> None:
        self._ids = query_ids, doc_ids
        self._seed = seed
        self._cutoff_score = np.full(len(doc_ids), -np.inf, np.float32)
        self._cutoff_hash = np.full(len(doc_ids), np.iinfo(np.uint64).max, np.uint64)
        self.n_rejected = 0
        """Pairs that the cap rejected."""

    @property
    def n_capped_documents(self) -> int:
        """Documents that have reached the cap."""
        return int(np.isfinite(self._cutoff_score).sum())

    def is_rejected(self, pairs: pl.DataFrame) -> NDArray[np.bool_]:
        """Which of `pairs` (query: number, document: number, score) come after the document's last accepted pair."""
        document, score = pairs["document"].to_numpy(), pairs["score"].to_numpy()
        out: NDArray[np.bool_] = score < self._cutoff_score[document]
        tied = np.flatnonzero(score == self._cutoff_score[document])
        out[tied] = self.hash_pairs(pairs[tied]) > self._cutoff_hash[document[tied]]
        return out

    def hash_pairs(self, pairs: pl.DataFrame) -> NDArray[np.uint64]:
        """The hashes that order pairs of equal score."""
        ids = (all_ids.gather(pairs[name]) for all_ids, name in zip(self._ids, ("query", "document"), strict=True))
        keys = [stable_hash(self._seed, "hub", f"{query_id}:{doc_id}") for query_id, doc_id in zip(*ids, strict=True)]
        return np.array(keys, dtype=np.uint64)

    def set_cutoffs(self, cutoffs: pl.DataFrame, n_rejected: int) -> None:
        """Make `cutoffs` (document, score, hash) the last accepted pairs of their documents."""
        document = cutoffs["document"].to_numpy()
        self._cutoff_score[document] = cutoffs["score"].to_numpy()
        self._cutoff_hash[document] = cutoffs["hash"].to_numpy()
        self.n_rejected += n_rejected


def apply_hub_cap(hub_cap: HubCap, max_queries: int, n_documents: int, propose: ProposalFunction) -> HubCap:
    """Set the cutoffs of `hub_cap` so that no document is a negative of more than `max_queries` queries.

    This is deferred acceptance (Gale & Shapley 1962). Each query proposes its negatives. A document with too many
    queries keeps the `max_queries` with the highest score (ties by smallest hash), and the rejected queries propose
    again without it. All queries propose at once, so their order does not matter. The rounds end because a rejection is
    final. A document may end below its cap if a near-duplicate later replaces it.

    Memory: 12 bytes a negative. Each round reads the verdicts of the rejected queries again.
    """
    proposals = propose(hub_cap, None)
    while True:
        counts = np.bincount(proposals["document"].to_numpy(), minlength=n_documents)
        over_cap = proposals.filter(pl.Series(counts[proposals["document"].to_numpy()] > max_queries))
        if over_cap.is_empty():
            return hub_cap
        over_cap = over_cap.with_columns(pl.Series("hash", hub_cap.hash_pairs(over_cap), dtype=pl.UInt64)).sort(
            "document", "score", "hash", descending=[False, True, False]
        )
        rank_in_document = pl.int_range(pl.len()).over("document")
        rejected = over_cap.filter(rank_in_document >= max_queries)
        hub_cap.set_cutoffs(over_cap.filter(rank_in_document == max_queries - 1), len(rejected))
        retry_queries = rejected["query"].unique().sort()
        kept = proposals.filter(~pl.col("query").is_in(retry_queries.implode()))
        proposals = pl.concat([kept, propose(hub_cap, retry_queries)])
