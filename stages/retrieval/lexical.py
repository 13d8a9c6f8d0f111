"""BM25 over the corpus: the lexical score of given (query, document) pairs, in any script."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from stages.text import UNSPACED, loose

_RUN = re.compile(f"[{UNSPACED}]+|[^\\s{UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{UNSPACED}]")
_PAIRS = 65_536
"""Pairs scored at once."""


def tokenise(text: str) -> list[str]:
    """Words, casefolded and without punctuation; runs of a script without spaces become overlapping character pairs.

    Character bigrams for Chinese, Japanese and Korean are what Lucene's CJKAnalyzer does; a run of one character
    stands for itself. Nothing is stemmed and no stop word removed, so every language is treated alike.
    """
    tokens: list[str] = []
    for run in _RUN.findall(loose(text)):
        if len(run) > 1 and _IS_UNSPACED.match(run):
            tokens.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            tokens.append(run)
    return tokens


class Bm25:
    """BM25 between some queries and the documents of a corpus, with the statistics of all of these.

    Lucene's variant with its defaults k1 = 1.2, b = 0.75 (Robertson and Zaragoza 2009; Kamphuis et al. 2020), by
    bm25s. A repeated query word counts as often as it stands there. What is held is one figure for each word of a query
    in each document that has it.
    """

    def __init__(self, queries: Sequence[str], documents: Iterable[str]) -> None:
        import bm25s

        words: dict[str, int] = {}
        asked = [[words.setdefault(token, len(words)) for token in tokenise(text)] for text in queries]
        other = len(words)  # words that no query holds can't score; they only give a document its length
        words["\0"] = other
        ids = [[words.get(token, other) for token in tokenise(text)] for text in documents]
        counts = [len(tokens) for tokens in asked]
        self._asked = scipy.sparse.csr_array(
            (np.ones(sum(counts), np.float32), [w for tokens in asked for w in tokens], np.cumsum([0, *counts])),
            shape=(len(asked), len(words)),
        )
        self._asked.sum_duplicates()
        self._weights = scipy.sparse.csr_array((len(ids), len(words)), dtype=np.float32)
        if any(ids):
            index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
            index.index((ids, words), create_empty_token=False, show_progress=False)
            found = index.scores
            self._weights = scipy.sparse.csc_array(
                (found["data"], found["indices"], found["indptr"]), shape=(len(ids), len(words))
            ).tocsr()

    def scores(self, query: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of the pairs (query[i], document[i]), by their places in what the index was made of: [n]."""
        found = np.zeros(len(query), np.float32)
        for start in range(0, len(query), _PAIRS):
            part = slice(start, start + _PAIRS)
            found[part] = (self._asked[query[part]] * self._weights[document[part]]).sum(axis=1)
        return found
