"""IDF-weighted term overlap: the share of a query's terms that a document contains, without any encoder.

A term's weight is ln(1 + N / n) if n of N queries contain it (Spärck Jones 1972, over queries instead of documents): a
word of every query of an FAQ weighs little, the name of a disease much. It needs no pass over the corpus.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from stages.retrieval.bm25 import tokenise


class IdfOverlap:
    """The weights of terms, from the texts of all queries."""

    def __init__(self, queries: Iterable[str]) -> None:
        self._query_frequency: Counter[str] = Counter()
        self._n_queries = 0
        for text in set(queries):
            self._query_frequency.update(set(tokenise(text)))
            self._n_queries += 1

    def compute_overlap(self, pairs: pl.DataFrame, queries: Mapping[str, str], texts: Mapping[str, str]) -> pl.Series:
        """The share of the query's term weight that the document contains, for each of `pairs` (query_id, doc_id).

        From 0 to 1; 0 if the query has no term. `queries` and `texts` map ids to texts.
        """
        document_terms = {doc_id: set(tokenise(texts[doc_id])) for doc_id in pairs["doc_id"].unique()}
        weights = {query_id: self._compute_idf(queries[query_id]) for query_id in pairs["query_id"].unique()}
        overlaps = []
        for query_id, doc_id in pairs.select("query_id", "doc_id").iter_rows():
            matched_weight = sum(weight for word, weight in weights[query_id].items() if word in document_terms[doc_id])
            overlaps.append(matched_weight / max(sum(weights[query_id].values()), 1e-12))
        return pl.Series("term_overlap", overlaps, dtype=pl.Float64)

    def _compute_idf(self, query: str) -> dict[str, float]:
        terms = sorted(set(tokenise(query)))  # sorted, so that sums are equal to the last bit
        return {word: float(np.log1p(self._n_queries / max(self._query_frequency[word], 1))) for word in terms}
