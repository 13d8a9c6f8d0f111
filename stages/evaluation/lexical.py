"""BM25 over the corpus: the lexical score of given (query, document) pairs, in any script."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.text import UNSPACED, loose

_RUN = re.compile(f"[{UNSPACED}]+|[^\\s{UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{UNSPACED}]")


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


def bm25_scores(
    queries: Sequence[str], documents: Sequence[str], query: NDArray[np.int64], document: NDArray[np.int64]
) -> NDArray[np.float32]:
    """BM25 of the pairs (queries[query[i]], documents[document[i]]), with the statistics of all `documents`.

    Lucene's variant with its defaults k1 = 1.2, b = 0.75 (Robertson and Zaragoza 2009; Kamphuis et al. 2020), by
    bm25s. A repeated query word counts as often as it stands there.
    """
    import bm25s

    words: dict[str, int] = {}
    asked = [[words.setdefault(token, len(words)) for token in tokenise(text)] for text in queries]
    other = len(words)  # words that no query holds can't score; they only give a document its length
    words["\0"] = other
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    ids = [[words.get(token, other) for token in tokenise(text)] for text in documents]
    if not any(ids):
        return np.zeros(len(query), dtype=np.float32)
    index.index((ids, words), create_empty_token=False, show_progress=False)

    scores = np.zeros(len(query), dtype=np.float32)
    order = np.argsort(query, kind="stable")
    starts = np.flatnonzero(np.diff(query[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        if len(rows) and (tokens := asked[query[rows[0]]]):
            scores[rows] = index.get_scores_from_ids(tokens)[document[rows]]
    return scores
