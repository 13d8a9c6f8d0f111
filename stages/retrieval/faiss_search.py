"""Dense retrieval through a FAISS index, for corpora where exact does not pay; used once its recall was measured."""

from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.errors import InputError
from stages.core.hashing import draw
from stages.core.schemas import Progress, Summary
from stages.retrieval.dense import Dense
from stages.retrieval.faiss_index import POINTS_WANTED, Index
from stages.retrieval.results import Floats, Found, Ids

EXACT = (None, "", "exact")
"""The names of the search without an index."""

_SAMPLED = 200
"""Queries whose recall is measured: their mean is good to about a point (a query's recall mostly lies within 0.1 to 0.2
of it), for as much exact search as 200 queries cost."""
_BLOCK = 32_768
"""Documents added at once. Part of the result (HNSW takes a block's documents in an order of its own), so it is not the
block that is held in memory, which people may change."""

_PAYS = 2_000_000_000
"""Queries x documents below which exact search takes about as long: at 8,000 x 200,000 x 384, in one thread,
IVF1024,Flat took 1.2 times as long and PQ192x4fs three quarters (tests.benchmarks.approximate_search)."""
_MEND = (
    " To find more, take a bigger code (more PQ parts, or SQ8), refine (append ,RFlat, and k_factor_rf=4 to "
    "--index-params), or give HNSW more links; or accept less with --min-recall."
)


class Wanted(NamedTuple):
    """What the user asked for."""

    factory: str
    """A string of `faiss.index_factory`."""
    parameters: str
    """As `faiss.ParameterSpace` takes them."""
    least: float
    """The recall below which the index is refused."""
    seed: int


class Approximate:
    """The `end` documents that look best to an index, of every query of `dense`; trained and filled when this is made.

    What the index finds, about twice `end`, is scored again from the stored vectors and ordered as an exact search
    orders (score, then place), so only which documents are found is approximate. A query for which it finds less than
    `end` is searched exactly.

    Recall@end is the share of the exact best `end` that the index finds, the mean over queries drawn by their id; what
    exact search adds does not count. Raises `InputError` where it is less than asked for. What the parameters leave
    open, nprobe or efSearch, is the least (by powers of two) that reaches it.
    """

    def __init__(self, dense: Dense, end: int, wanted: Wanted, progress: Progress) -> None:
        self._dense, self._progress, self._short = dense, progress, 0
        self._size = len(dense.doc_ids)
        self._end = min(end, self._size)
        self._depth = min(2 * end + 32, self._size)  # codes blur the order: what is scored again must reach deeper
        self._index = Index(wanted.factory, dense.vectors.dimension, self._size, wanted.parameters)
        if len(dense.query_ids) * self._size < _PAYS:
            progress.say(
                f"{len(dense.query_ids):,} queries x {self._size:,} documents: exact search takes about as long as "
                f"making {wanted.factory} and searching it, and misses nothing (--index exact)"
            )
        self._fill(wanted.seed)
        sampled = _drawn(dense.query_ids, _SAMPLED, wanted.seed, "recall sample")
        parameters, recall = self._tuned(sampled, wanted)
        progress.say(
            f"{wanted.factory} ({parameters or 'no parameters'}): recall@{self._end} {recall:.3f} on {len(sampled):,} "
            "sampled queries"
        )
        self._said: Summary = {
            "index": wanted.factory,
            "parameters": parameters,
            "recall": round(recall, 4),
            "recall at": self._end,
            "sampled queries": len(sampled),
            "trained on": self._index.sample,
            "bytes": self._index.bytes,
        }

    @property
    def summary(self) -> Summary:
        """The index, its recall, and how many of the queries asked so far it found too little for."""
        return {**self._said, "searched exactly": self._short}

    def find(self, queries: Ids, end: int) -> Found:
        """The first `end` ranks of each query; all where there are fewer documents."""
        k = min(end, self._end)
        places, scores = self._dense.best_of(queries, self._index.best(self._dense.asked(queries), self._depth), k)
        short = np.flatnonzero((places < 0).any(axis=1))
        if len(short):
            places[short], scores[short] = next(self._dense.best([queries[short]], k))
            self._short += len(short)
        return Found.ranked(np.full(len(queries), k), places.ravel(), scores.ravel())

    def _fill(self, seed: int) -> None:
        index, say = self._index, self._progress.say
        if index.sample:
            say(f"{index.factory}: training on {index.sample:,} of {self._size:,} documents, by one thread")
            if index.sample < POINTS_WANTED * index.lists:
                say(
                    f"{index.factory}: {index.sample / index.lists:.1f} documents a list to train on, FAISS wants "
                    f"{POINTS_WANTED}: {self._size // POINTS_WANTED:,} lists or fewer would find better"
                )
            drawn = _drawn(self._dense.doc_ids, index.sample, seed, "index training")
            index.train(self._vectors(drawn))
        for start in range(0, self._size, _BLOCK):
            places = np.arange(start, min(start + _BLOCK, self._size))
            index.add(self._vectors(places))
            self._progress.advance(int(places[-1]) + 1, self._size, "indexed")

    def _vectors(self, documents: Ids) -> Floats:
        """The vectors of some documents, held in memory once: a training sample may be gigabytes."""
        out, start = np.empty((len(documents), self._dense.vectors.dimension), np.float32), 0
        for block in self._dense.read(documents):
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def _tuned(self, sampled: Ids, wanted: Wanted) -> tuple[str, float]:
        """The parameters that hold from now on, and their recall on the sampled queries."""
        (exact, _), queries = next(self._dense.best([sampled], self._end)), self._dense.asked(sampled)
        settings, given = self._index.settings(), wanted.parameters
        named = [one for one in given.split(",") if one]
        left = [one for one in named if one.split("=")[0] not in {other.split("=")[0] for other in settings}]
        fixed = not settings or left != named
        tries = [given] * fixed + [",".join([*left, one]) for one in settings]
        recalls: list[float] = []
        for parameters in tries:
            self._index.tune(parameters)
            recalls.append(_recall(exact, self._index.best(queries, self._depth)))
            if recalls[-1] >= wanted.least:
                break
        reached = recalls[-1] >= wanted.least
        if reached and (len(recalls) == 1 or not fixed):
            return tries[len(recalls) - 1], recalls[-1]
        said = 0 if fixed else -1
        most = (
            f" With --index-params {tries[len(recalls) - 1]} it is {recalls[-1]:.3f}."
            if fixed and len(recalls) > 1
            else ""
        )
        raise InputError(
            f"--index {wanted.factory!r} ({tries[said] or 'no parameters'}): recall@{self._end} is {recalls[said]:.3f} "
            f"on {len(sampled):,} sampled queries, and --min-recall is {wanted.least:g}.{most}"
            f"{'' if reached else _MEND}"
        )


def _recall(exact: Ids, found: Ids) -> float:
    """The share of the ids `exact` [q, k] that stand in the same row of `found` [q, n]; 1 where there are none."""
    missed = sum(int((~np.isin(wanted, there)).sum()) for wanted, there in zip(exact, found, strict=True))
    return 1 - missed / max(exact.size, 1)


def _drawn(ids: pl.Series, count: int, seed: int, purpose: str) -> Ids:
    """The places, rising, of `count` of the ids (all where there are fewer), drawn by hash."""
    draws = np.array([draw(seed, purpose, one) for one in ids], np.uint64)
    return np.sort(np.argsort(draws, kind="stable")[:count])
