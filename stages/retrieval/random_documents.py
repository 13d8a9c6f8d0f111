"""Random documents for each query, which hardly change when queries or documents come or go."""

import numpy as np
import polars as pl

from stages.core.arrays import Ints
from stages.core.hashing import stable_hash
from stages.retrieval.results import SearchResults


class RandomDocuments:
    """Documents on a circle by their hash; a query takes those that follow its own (consistent hashing, Karger et al.
    1997).

    It costs one hash a document and one a query, not one a pair. A query's documents depend on no other query. A
    document that comes or goes changes only the lists that it stands in, by one place each. Each document is as likely
    as any other over the seeds; but two queries with near places share documents, and documents that are neighbours on
    the circle come together.
    """

    def __init__(self, seed: int, query_ids: pl.Series, doc_ids: pl.Series) -> None:
        queries, documents = (
            np.array([stable_hash(seed, f"random source {kind}", one) for one in ids], np.uint64)
            for kind, ids in (("query", query_ids), ("document", doc_ids))
        )
        # of equal hashes the first by id: the order of the corpus
        self._order = np.argsort(documents, kind="stable")
        self._start = np.searchsorted(documents[self._order], queries)

    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The `top_k` documents (all where there are fewer) after each query's place. Scores are 0: it has none."""
        size = len(self._order)
        width = min(top_k, size)
        places = (self._start[queries][:, None] + np.arange(width)) % max(size, 1)
        return SearchResults.from_rankings(
            np.full(len(queries), width), self._order[places.ravel()], np.zeros(places.size, np.float32)
        )
