"""BM25 over the corpus, in any script: the score of given (query, document) pairs, and a query's best documents.

Not by bm25s: its search takes 0.7 to 1.2 times the processor time, scores of pairs 1.9 times and up to 2.2 times the
memory, and it does not order ties, so 0.04 to 0.4 % of the documents found are others (docs/benchmarks.md).
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
    stands for itself. Nothing is stemmed and no stop word removed, so every language is treated alike.
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
    """BM25 between some queries and the documents of a corpus, with the statistics of all of these.

    Lucene's variant with its defaults k1 = 1.2, b = 0.75 (Robertson and Zaragoza 2009; Kamphuis et al. 2020), to the
    last bit as bm25s has it, which holds all tokens of all documents for that. What is held here is one figure for each
    word of a query in each document that has it, 8 bytes.
    """

    def __init__(self, queries: Sequence[str], documents: Iterable[str]) -> None:
        self._query_counts, self._weights, _ = _build_bm25_index(queries, documents)

    def score_pairs(self, query_index: NDArray[np.int64], document_index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of the pairs (query[i], document[i]), by their places in what the index was made of: [n]."""
        found = np.zeros(len(query_index), np.float32)
        for start in range(0, len(query_index), _BM25_BATCH_PAIRS):
            part = slice(start, start + _BM25_BATCH_PAIRS)
            found[part] = (self._query_counts[query_index[part]] * self._weights[document_index[part]]).sum(axis=1)
        return found


class Bm25Search:
    """The best documents of each query by the BM25 of `Bm25`: exactly, one query at a time.

    A score is summed in float64 over the query's words in the order of the alphabet and rounded once, so it does not
    depend on other queries or documents; `Bm25.score_pairs` gives the same up to float32's rounding.
    """

    def __init__(self, queries: Sequence[str], documents: Iterable[str]) -> None:
        self._query_counts, weights, words = _build_bm25_index(queries, documents)
        self._weights = weights.tocsc()
        place = {word: place for place, word in enumerate(sorted(words))}
        self._alphabetical_ranks = np.array([place[word] for word in words])

    def search(self, queries: NDArray[np.int64], top_k: int) -> SearchResults:
        """The `top_k` best documents of each query (by its place): score falling, ties in the order of the corpus.

        A document that shares no word with the query has score 0 and is none of them, so there may be fewer.
        """
        best = [self._search_query(query, top_k) for query in queries.tolist()]
        ids = np.concatenate([np.empty(0, np.int64), *(found for found, _ in best)])
        scores = np.concatenate([np.empty(0, np.float32), *(found for _, found in best)])
        return SearchResults.from_rankings([len(found) for found, _ in best], ids, scores)

    def _search_query(self, query: int, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        asked = slice(*self._query_counts.indptr[query : query + 2])
        words, term_counts = self._query_counts.indices[asked], self._query_counts.data[asked].astype(np.float64)
        indptr, indices, data = self._weights.indptr, self._weights.indices, self._weights.data
        sums = np.zeros(self._weights.shape[0])
        for place in np.argsort(self._alphabetical_ranks[words]):
            postings = slice(*indptr[words[place] : words[place] + 2])  # a document stands there once
            sums[indices[postings]] += data[postings] * term_counts[place]
        scores = sums.astype(np.float32)
        min_score = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else 0
        ids = np.flatnonzero((scores >= min_score) & (scores > 0))
        ids = ids[np.lexsort((ids, -scores[ids]))][:top_k]
        return ids, scores[ids]


def _build_bm25_index(
    queries: Sequence[str], documents: Iterable[str]
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, list[str]]:
    """How often each query has each word [q, w], what that word weighs in each document [d, w], and the words.

    A document's other words, which nobody asks for, only count to its length.
    """
    vocabulary: dict[str, int] = {}
    query_counts = _count_terms(
        [[vocabulary.setdefault(token, len(vocabulary)) for token in tokenise(text)] for text in queries], vocabulary
    )
    lengths: list[int] = []
    data: list[NDArray[Any]] = [np.empty(0, np.float32)]
    places: list[NDArray[Any]] = [np.empty(0, np.int32)]
    ends: list[NDArray[Any]] = [np.zeros(1, np.int64)]
    document_frequencies = np.zeros(len(vocabulary), np.int64)
    rest = iter(documents)
    while term_ids := [_query_term_ids(text, vocabulary, lengths) for text in islice(rest, _INDEX_BATCH_DOCUMENTS)]:
        block = _count_terms(term_ids, vocabulary)
        data.append(block.data)
        places.append(block.indices)
        ends.append(ends[-1][-1] + block.indptr[1:])
        document_frequencies += np.bincount(block.indices, minlength=len(vocabulary))
    shape = len(lengths), len(vocabulary)
    weights = scipy.sparse.csr_array(
        (
            _concatenate_and_clear(data),
            _concatenate_and_clear(places),
            _shrink_index_dtype(_concatenate_and_clear(ends)),
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
    """The words of a text that queries have; its length goes to `lengths`."""
    tokens = tokenise(text)
    lengths.append(len(tokens))
    return np.array([word for token in tokens if (word := vocabulary.get(token)) is not None], np.int32)


def _count_terms(texts: Sequence[Sequence[int] | NDArray[np.int32]], vocabulary: Sized) -> scipy.sparse.csr_array:
    """How often each text has each word: float32 [t, w]."""
    sizes = [len(text) for text in texts]
    ids = np.fromiter(chain.from_iterable(texts), np.int32, sum(sizes))
    counts = scipy.sparse.csr_array(
        (np.ones(len(ids), np.float32), ids, _shrink_index_dtype(np.cumsum([0, *sizes]))),
        shape=(len(texts), len(vocabulary)),
    )
    counts.sum_duplicates()
    return counts


def _shrink_index_dtype(ends: NDArray[Any]) -> NDArray[Any]:
    """In 32 bits where that is enough: scipy makes the places as wide as the ends."""
    return ends.astype(np.int32) if ends[-1] <= np.iinfo(np.int32).max else ends


def _concatenate_and_clear(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """One array of all parts. These are let go, so that not every figure of an index is held twice at once."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole
