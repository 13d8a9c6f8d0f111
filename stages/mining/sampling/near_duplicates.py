"""Thinning: choose along an order of visits, passing over what is nearly a negative of the same query already."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.mining.candidates.documents import Vectorise
from stages.retrieval.exact.scoring import pair_scores

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_PAIRS = 8192


class Walked(NamedTuple):
    """What was taken, and what was passed over because it nearly equals one that was taken before."""

    taken: Ints
    """Places in the visits, in the order of taking within each query."""
    thinned: Ints
    """Places in the visits, in no order."""


class Alike:
    """Tells which rows of a pool are nearly the same documents: cosine of their vectors at least `similarity`.

    Vectors are fetched when they are first needed, with some of those that may be needed next. A cosine depends on its
    two documents alone, to the last bit.
    """

    def __init__(self, doc_ids: pl.Series, similarity: float, vectorise: Vectorise) -> None:
        self._documents = doc_ids.unique(maintain_order=True)
        codes = pl.DataFrame({"doc_id": self._documents}).with_row_index("document")
        self._of = (
            doc_ids.to_frame("doc_id")
            .join(codes, on="doc_id", how="left", maintain_order="left")["document"]
            .to_numpy()
        )
        self._slot = np.full(len(self._documents), -1, np.int64)
        self._vectors = np.empty((0, 0), np.float32)
        self._similarity = np.float32(similarity)
        self._vectorise = vectorise

    def require(self, rows: Ints, next_rows: Callable[[], Ints]) -> None:
        """Have the vectors of `rows` at hand; where some are lacking, those of `next_rows` are fetched with them."""
        if (self._slot[self._of[rows]] >= 0).all():
            return
        wanted = np.unique(self._of[np.concatenate([rows, next_rows()])])
        wanted = wanted[self._slot[wanted] < 0]
        found = self._vectorise(self._documents.gather(wanted).to_frame("doc_id")).astype(np.float32, copy=False)
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
        self._slot[wanted] = len(self._vectors) + np.arange(len(wanted))
        self._vectors = np.concatenate([self._vectors.reshape(-1, found.shape[1]), found])

    def any(self, rows: Ints, held: Ints) -> Bools:
        """Whether each of `rows` [n] is nearly one of the rows `held` [n, k], where -1 holds none."""
        out = np.zeros(len(rows), np.bool_)
        left, column = np.nonzero(held >= 0)
        for start in range(0, len(left), _PAIRS):
            i, j = left[start : start + _PAIRS], column[start : start + _PAIRS]
            ours, theirs = self._slot[self._of[rows[i]]], self._slot[self._of[held[i, j]]]
            cosine = pair_scores(self._vectors[ours], self._vectors[theirs])
            out[i[cosine >= self._similarity]] = True
        return out


def walk(visits: pl.DataFrame, curated: Bools, negatives: int, alike: Alike | None) -> Walked:
    """Go through each query's visits in order and take a row where its counter has room, up to `negatives` in all.

    `visits`: query, row, counter, upto, sorted by query (see `samplings.visits`); `curated` [rows]: people chose these,
    so they are never passed over. Any other row that is `alike` to one taken before is passed over for good. All
    queries go in step, one visit each at a time, so that the work is done on arrays; no query depends on another.
    """
    row, counter, upto = (visits[name].to_numpy().astype(np.int64) for name in ("row", "counter", "upto"))
    query = visits["query"].to_numpy()
    starts = np.flatnonzero(np.append(True, query[1:] != query[:-1]))[: len(query)]
    ends = np.append(starts[1:], len(query))
    held = np.full((len(starts), negatives), -1, np.int64)
    places = held.copy()
    taken = np.zeros(len(starts), np.int64)
    counts = np.zeros((len(starts), int(counter.max(initial=0)) + 1), np.int64)
    gone = np.zeros(len(curated), np.bool_)
    at = starts.copy()
    thinned = [np.empty(0, np.int64)]
    active = np.arange(len(starts))
    while len(active):
        visit = at[active]
        open_ = ~gone[row[visit]] & (counts[active, counter[visit]] < upto[visit])
        asking, visit = active[open_], visit[open_]
        rows = row[visit]
        if alike is not None and len(rows):
            ahead = np.minimum(at[active, None] + np.arange(negatives), ends[active, None] - 1)
            alike.require(rows, lambda ahead=ahead: row[ahead.ravel()])  # type: ignore[misc]
            near = alike.any(rows, held[asking]) & ~curated[rows]
        else:
            near = np.zeros(len(rows), np.bool_)
        gone[rows] = True
        thinned.append(visit[near])
        mine = asking[~near]
        held[mine, taken[mine]], places[mine, taken[mine]] = rows[~near], visit[~near]
        counts[mine, counter[visit[~near]]] += 1
        taken[mine] += 1
        at[active] += 1
        active = active[(at[active] < ends[active]) & (taken[active] < negatives)]
    return Walked(places[places >= 0], np.concatenate(thinned))
