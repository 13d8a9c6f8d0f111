"""BM25 over the corpus, in any script: the score of given (query, document) pairs, and a query's best documents.

Not by bm25s: its search takes 0.7 to 1.2 times the processor time, scores of pairs 1.9 times and up to 2.2 times the
memory, and it does not order ties, so 0.04 to 0.4 % of the documents found differ (docs/benchmarks.md).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import chain, islice
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from stages.core.text import UNSPACED_SCRIPTS, casefold_words
from stages.retrieval.results import SearchResults

_SCRIPT_RUN_PATTERN = re.compile(f"[{UNSPACED_SCRIPTS}]+|[^\\s{UNSPACED_SCRIPTS}]+")
_UNSPACED_CHAR_PATTERN = re.compile(f"[{UNSPACED_SCRIPTS}]")
_K1, _B = 1.2, 0.75
_INDEX_BATCH_DOCUMENTS = 8_192
"""Documents read at once."""
_BM25_BATCH_PAIRS = 65_536
"""Pairs scored at once."""


def tokenise(text: str) -> list[str]:
    """Words, casefolded and without punctuation; runs of a script without spaces become overlapping character pairs.

    Character bigrams for Chinese, Japanese and Korean are what Lucene's CJKAnalyzer does; a run of one character
    is a token. There is no stemming and no stop word removal, so all languages are treated equally.
    """
    form = casefold_words(text)
    if form.isascii():
        return form.split()
    tokens: list[str] = []
    for run in _SCRIPT_RUN_PATTERN.findall(form):
        if len(run) > 1 and _UNSPACED_CHAR_PATTERN.match(run):
            tokens.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            tokens.append(run)
    return tokens


class Bm25:
    """BM25 scores of pairs of queries and documents, with the statistics of the documents.

    Lucene's variant with its defaults k1 = 1.2, b = 0.75 (Robertson and Zaragoza 2009; Kamphuis et al. 2020). The
    weights have the same bits as those of bm25s, which holds all tokens of all documents. This class holds 8 bytes for
    each query word in each document that contains it.
    """

    def __init__(self, queries: Sequence[str], documents: Iterable[str]) -> None:
        self._query_counts, self._weights, _ = _build_bm25_index(queries, documents)

    def score_pairs(self, query_index: NDArray[np.int64], document_index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of the pairs (query_index[i], document_index[i]): float32 [n]."""
        scores = np.zeros(len(query_index), np.float32)
        for start in range(0, len(query_index), _BM25_BATCH_PAIRS):
            part = slice(start, start + _BM25_BATCH_PAIRS)
            scores[part] = (self._query_counts[query_index[part]] * self._weights[document_index[part]]).sum(axis=1)
        return scores


class Bm25Search:
    """The best documents of each query by the BM25 of `Bm25`: exactly, one query at a time.

    A score is the float64 sum over the query's words in alphabetical order, rounded once, so it does not depend on
    other queries. `Bm25.score_pairs` gives the same up to float32's rounding.
    """

    def __init__(self, queries: Sequence[str], documents: Iterable[str]) -> None:
        self._query_counts, weights, words = _build_bm25_index(queries, documents)
        self._weights = weights.tocsc()
        rank = {word: rank for rank, word in enumerate(sorted(words))}
        self._alphabetical_ranks = np.array([rank[word] for word in words])

    def search(self, queries: NDArray[np.int64], top_k: int) -> SearchResults:
        """The `top_k` best documents of each query (by its position); ties are in the order of the corpus.

        A document that shares no word with the query has score 0 and is left out, so there can be fewer.
        """
        rankings = [self._search_query(query, top_k) for query in queries.tolist()]
        ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in rankings)])
        scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in rankings)])
        return SearchResults.from_rankings([len(ids) for ids, _ in rankings], ids, scores)

    def score_pairs(self, query_index: NDArray[np.int64], document_index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of the pairs (query_index[i], document_index[i]), with the bits of `search`: float32 [n]."""
        scores = np.zeros(len(query_index), np.float32)
        for query in np.unique(query_index).tolist():
            is_asked = query_index == query
            scores[is_asked] = self._score_corpus(query)[document_index[is_asked]]
        return scores

    def _score_corpus(self, query: int) -> NDArray[np.float32]:
        row = slice(*self._query_counts.indptr[query : query + 2])
        words, term_counts = self._query_counts.indices[row], self._query_counts.data[row].astype(np.float64)
        indptr, indices, data = self._weights.indptr, self._weights.indices, self._weights.data
        sums = np.zeros(self._weights.shape[0])
        for i in np.argsort(self._alphabetical_ranks[words]):
            postings = slice(*indptr[words[i] : words[i] + 2])  # contains a document once
            sums[indices[postings]] += data[postings] * term_counts[i]
        return sums.astype(np.float32)

    def _search_query(self, query: int, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = self._score_corpus(query)
        min_score = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else 0
        ids = np.flatnonzero((scores >= min_score) & (scores > 0))
        ids = ids[np.lexsort((ids, -scores[ids]))][:top_k]
        return ids, scores[ids]


def _build_bm25_index(
    queries: Sequence[str], documents: Iterable[str]
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, list[str]]:
    """The count of each word in each query [q, w], the weight of each word in each document [d, w], and the words.

    Words of a document that are in no query only count for its length.
    """
    vocabulary: dict[str, int] = {}
    query_counts = _count_terms(
        [[vocabulary.setdefault(token, len(vocabulary)) for token in tokenise(text)] for text in queries], vocabulary
    )
    lengths: list[int] = []
    data: list[NDArray[Any]] = [np.empty(0, np.float32)]
    indices: list[NDArray[Any]] = [np.empty(0, np.int32)]
    indptr: list[NDArray[Any]] = [np.zeros(1, np.int64)]
    document_frequencies = np.zeros(len(vocabulary), np.int64)
    remaining = iter(documents)
    while term_ids := [
        _query_term_ids(text, vocabulary, lengths) for text in islice(remaining, _INDEX_BATCH_DOCUMENTS)
    ]:
        block = _count_terms(term_ids, vocabulary)
        data.append(block.data)
        indices.append(block.indices)
        indptr.append(indptr[-1][-1] + block.indptr[1:])
        document_frequencies += np.bincount(block.indices, minlength=len(vocabulary))
    shape = len(lengths), len(vocabulary)
    weights = scipy.sparse.csr_array(
        (
            _concatenate_and_clear(data),
            _concatenate_and_clear(indices),
            _shrink_index_dtype(_concatenate_and_clear(indptr)),
        ),
        shape=shape,
    )
    idf = np.array(
        [math.log(1 + (len(lengths) - n + 0.5) / (n + 0.5)) for n in document_frequencies.tolist()], np.float32
    )
    mean_length = np.mean(lengths) if any(lengths) else 1.0
    norms = _K1 * ((1 - _B) + _B * np.array(lengths) / mean_length)
    for start in range(0, len(lengths), _INDEX_BATCH_DOCUMENTS):
        rows = weights.indptr[start : start + _INDEX_BATCH_DOCUMENTS + 1]
        part = slice(rows[0], rows[-1])
        term_counts = weights.data[part].astype(np.float64)
        norm = np.repeat(norms[start : start + _INDEX_BATCH_DOCUMENTS], np.diff(rows))
        weights.data[part] = idf[weights.indices[part]] * (term_counts / (norm + term_counts))
    return query_counts, weights, list(vocabulary)


def _query_term_ids(text: str, vocabulary: Mapping[str, int], lengths: list[int]) -> NDArray[np.int32]:
    """The words of a text that are in a query; appends the length of the text to `lengths`."""
    tokens = tokenise(text)
    lengths.append(len(tokens))
    return np.array([word for token in tokens if (word := vocabulary.get(token)) is not None], np.int32)


def _count_terms(texts: Sequence[Sequence[int] | NDArray[np.int32]], vocabulary: Sized) -> scipy.sparse.csr_array:
    """The count of each word in each text: float32 [t, w]."""
    sizes = [len(text) for text in texts]
    ids = np.fromiter(chain.from_iterable(texts), np.int32, sum(sizes))
    counts = scipy.sparse.csr_array(
        (np.ones(len(ids), np.float32), ids, _shrink_index_dtype(np.cumsum([0, *sizes]))),
        shape=(len(texts), len(vocabulary)),
    )
    counts.sum_duplicates()
    return counts


def _shrink_index_dtype(indptr: NDArray[Any]) -> NDArray[Any]:
    """`indptr` in 32 bits if that is enough: scipy stores the indices in the same type."""
    return indptr.astype(np.int32) if indptr[-1] <= np.iinfo(np.int32).max else indptr


def _concatenate_and_clear(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """One array of all parts, which are freed at once so that an index is not held twice."""
    array = np.concatenate(parts)
    parts.clear()
    return array
