"""Random documents for each query, which hardly change when queries or documents come or go."""

import numpy as np
import polars as pl

from stages.core.arrays import Ints
from stages.core.hashing import stable_hash
from stages.retrieval.results import SearchResults


class RandomDocuments:
    """Consistent hashing (Karger et al. 1997): documents are on a circle by their hash, and a query gets those that
    follow its own hash.

    It takes one hash for each document and query, not for each pair. A query's documents do not depend on other
    queries. A document that is added or removed changes only the lists that contain it, by one entry. Over the seeds
    all documents are equally likely, but queries with similar hashes share documents, and neighbours on the circle are
    chosen together.
    """

    def __init__(self, seed: int, query_ids: pl.Series, doc_ids: pl.Series) -> None:
        queries, documents = (
            np.array([stable_hash(seed, f"random source {kind}", text_id) for text_id in ids], np.uint64)
            for kind, ids in (("query", query_ids), ("document", doc_ids))
        )
        # documents with equal hashes keep the order of the corpus
        self._order = np.argsort(documents, kind="stable")
        self._start = np.searchsorted(documents[self._order], queries)

    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The `top_k` documents (all if there are fewer) after each query's hash. All scores are 0."""
        size = len(self._order)
        width = min(top_k, size)
        positions = (self._start[queries][:, None] + np.arange(width)) % max(size, 1)
        return SearchResults.from_rankings(
            np.full(len(queries), width), self._order[positions.ravel()], np.zeros(positions.size, np.float32)
        )
