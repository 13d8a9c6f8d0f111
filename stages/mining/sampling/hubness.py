"""Hubs: documents that turn up as a negative of very many queries, and a cap on how often one may.

Radovanovic et al., "Hubs in Space", JMLR 2010: in high dimension some points are near to very many others. As negatives
they teach that one document is always wrong.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.hashing import stable_hash

ProposalFunction = Callable[["HubCap", pl.Series | None], pl.DataFrame]
"""What queries (by number; None: all) take as negatives under caps, without curated ones: query, document, score."""


class HubCap:
    """Down to which pair each document of the corpus may be a negative: by score, then by a hash of the pair's ids."""

    def __init__(self, query_ids: pl.Series, doc_ids: pl.Series, seed: int) -> None:
        self._ids = query_ids, doc_ids
        self._seed = seed
        self._cutoff_score = np.full(len(doc_ids), -np.inf, np.float32)
        self._cutoff_hash = np.full(len(doc_ids), np.iinfo(np.uint64).max, np.uint64)
        self.n_rejected = 0
        """Pairs that had to give way."""

    @property
    def n_capped_documents(self) -> int:
        """Documents that have reached the cap."""
        return int(np.isfinite(self._cutoff_score).sum())

    def is_rejected(self, pairs: pl.DataFrame) -> NDArray[np.bool_]:
        """Which of `pairs` (query: number, document: number, score) come after the last one that is let
        in."""
        document, score = pairs["document"].to_numpy(), pairs["score"].to_numpy()
        out: NDArray[np.bool_] = score < self._cutoff_score[document]
        tied = np.flatnonzero(score == self._cutoff_score[document])
        out[tied] = self.hash_pairs(pairs[tied]) > self._cutoff_hash[document[tied]]
        return out

    def hash_pairs(self, pairs: pl.DataFrame) -> NDArray[np.uint64]:
        """The hashes by which pairs of equal score are ordered."""
        ids = (numbers.gather(pairs[of]) for numbers, of in zip(self._ids, ("query", "document"), strict=True))
        keys = [stable_hash(self._seed, "hub", f"{query_id}:{doc_id}") for query_id, doc_id in zip(*ids, strict=True)]
        return np.array(keys, dtype=np.uint64)

    def set_cutoffs(self, cutoffs: pl.DataFrame, n_rejected: int) -> None:
        """Let nothing in after these pairs (document, score, draw)."""
        document = cutoffs["document"].to_numpy()
        self._cutoff_score[document], self._cutoff_hash[document] = (
            cutoffs["score"].to_numpy(),
            cutoffs["draw"].to_numpy(),
        )
        self.n_rejected += n_rejected


def apply_hub_cap(hub_cap: HubCap, max_queries: int, n_documents: int, propose: ProposalFunction) -> HubCap:
    """Close `hub_cap` so that no document is a negative of more than `max_queries` queries.

    Deferred acceptance (Gale & Shapley 1962): every query takes its choice; a document that more than `max_queries`
    queries take keeps the `max_queries` where it is hardest (highest score, then smallest hash); the others choose
    again without it. All choose at once in each round, so no order of queries enters. It ends because every round bars
    pairs for good. Where thinning makes a query give up a document it had, that document may end below its cap.

    Memory: 12 bytes a negative that is taken. A round reads the verdicts of those again who were turned away.
    """
    proposals = propose(hub_cap, None)
    while True:
        counts = np.bincount(proposals["document"].to_numpy(), minlength=n_documents)
        over_cap = proposals.filter(pl.Series(counts[proposals["document"].to_numpy()] > max_queries))
        if over_cap.is_empty():
            return hub_cap
        over_cap = over_cap.with_columns(pl.Series("draw", hub_cap.hash_pairs(over_cap), dtype=pl.UInt64)).sort(
            "document", "score", "draw", descending=[False, True, False]
        )
        rank_in_document = pl.int_range(pl.len()).over("document")
        rejected = over_cap.filter(rank_in_document >= max_queries)
        hub_cap.set_cutoffs(over_cap.filter(rank_in_document == max_queries - 1), len(rejected))
        retry_queries = rejected["query"].unique().sort()
        kept = proposals.filter(~pl.col("query").is_in(retry_queries.implode()))
        proposals = pl.concat([kept, propose(hub_cap, retry_queries)])
