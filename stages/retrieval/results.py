"""Sources of candidates: their names, the window of ranks that is kept, and the search results."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.core.arrays import Floats, Ints

SOURCE_NAME_PATTERN = re.compile(r"dense|dense[2-9]|dense[1-9][0-9]+|bm25|random")
_SOURCE_PATTERN = re.compile(rf"({SOURCE_NAME_PATTERN.pattern})(?::(?:([0-9]+)-)?([0-9]+))?")


class CandidateSource(NamedTuple):
    """Ranks start + 1 to end of one ranking: the slice [start:end]. `end` is None if top_k sets it."""

    name: str
    start: int
    end: int | None

    @property
    def encoder_index(self) -> int | None:
        """The index of a dense source's encoder: 0 for dense, 1 for dense2; None for other sources."""
        return int(self.name.removeprefix("dense") or 1) - 1 if self.name.startswith("dense") else None


def parse_sources(texts: Sequence[str]) -> tuple[CandidateSource, ...]:
    """Parse sources: NAME, NAME:END or NAME:START-END. Raises `ValueError` if one is invalid."""
    sources = tuple(_parse_source(text) for text in texts)
    names = [source.name for source in sources]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{duplicate} is given twice: give each source once, with one window")
    first = next((source for source in sources if source.name == "dense"), None)
    if first is None or first.start:
        raise ValueError(
            "dense must be among the sources, from its first rank on (dense or dense:END): the mask uses its "
            "scores, and train and evaluate read its list"
        )
    return sources


def _parse_source(text: str) -> CandidateSource:
    match = _SOURCE_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no source: it is NAME, NAME:END or NAME:START-END, with NAME one of dense, dense2, dense3, "
            "... (the encoders), bm25 and random, as in bm25:50 or random:20"
        )
    name, start, end = match[1], int(match[2] or 0), None if match[3] is None else int(match[3])
    if end is not None and start >= end:
        raise ValueError(f"{text!r} keeps no rank: START-END keeps ranks START + 1 to END, so END must be the greater")
    return CandidateSource(name, start, end)


def is_found_by(source: str) -> pl.Expr:
    """Whether the retriever `source` found a pair; a pair that several found has a source such as "dense+bm25"."""
    return ("+" + pl.col("source") + "+").str.contains(f"+{source}+", literal=True)


class SearchResults(NamedTuple):
    """The candidates of some queries by one source, ordered by query and rank. Arrays of equal length."""

    query_index: Ints
    """The position of the query among those of the search, ascending."""
    document_index: Ints
    """The position of the document in the corpus."""
    rank: npt.NDArray[np.int32]
    """From 1, in the source's own ranking."""
    score: Floats
    """The score by this source."""

    @classmethod
    def from_rankings(cls, n_per_query: npt.ArrayLike, document_index: Ints, score: Floats) -> "SearchResults":
        """From the rows of the first query (`n_per_query[0]`, best first), then those of the second, and so on."""
        counts = np.asarray(n_per_query, np.int64)
        rank = np.arange(1, len(document_index) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(np.repeat(np.arange(len(counts)), counts), document_index, rank.astype(np.int32), score)

    def skip(self, n_ranks: int) -> "SearchResults":
        """Without the first `n_ranks` ranks."""
        return self._select_rows(self.rank > n_ranks) if n_ranks else self

    def select_queries(self, queries: slice) -> "SearchResults":
        """The rows of the queries start <= position < stop; positions are not changed."""
        begin, end = np.searchsorted(self.query_index, [queries.start, queries.stop])
        return self._select_rows(slice(begin, end))

    def _select_rows(self, rows: slice | npt.NDArray[np.bool_]) -> "SearchResults":
        return SearchResults(self.query_index[rows], self.document_index[rows], self.rank[rows], self.score[rows])
