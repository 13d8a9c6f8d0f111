"""A strip: some queries, and the best documents of each among the scores that it was shown until now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.core.errors import InputError
from stages.core.memory import ran_out
from stages.embedding.vector_store import Floats
from stages.retrieval.results import Ids
from stages.retrieval.topk_cache import NONE, Entries, entries, scores_of

TILE = 1_024, 1_024
"""Queries and documents multiplied at once: 4 MB of scores, which stay in the cache until they were looked at."""
MANY = 0.1
"""Share of a tile that passes, above which it is not worth while to find out which documents do."""
_ROWS = 64
"""Queries that what was found is merged for at once: few, so that this needs little memory."""


class Item(NamedTuple):
    """Queries to sweep a block of documents for."""

    queries: Floats
    documents: Floats
    least: Floats
    """The score that a document must beat for each query: [q]; -inf where any will do."""


class Found(NamedTuple):
    """Of one block the best documents of each query, at least of those that beat its `least`: [q, width], with NONE."""

    best: Entries
    off: npt.NDArray[np.float64]
    """How far a query's scores lay from those of `pair_scores` before they were rounded to bfloat16, at most: [q]."""
    documents: int


Sweep = Callable[[Item], list[Found]]
"""A worker; it holds on to none of its items."""


@contextmanager
def within_memory(item: Item, device: str) -> Iterator[None]:
    """Raises `InputError` where the device's memory does not hold an item and its scores."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        elsewhere = "" if device == "cpu" else " or search on the CPU: search_device = 'cpu'."
        raise InputError(
            f"the memory of {device} does not hold {len(item.documents):,} vectors and their scores. Free it, or lower "
            f"block under [mine]{elsewhere or '.'}"
        ) from error


class Tile(Protocol):
    """Scores of q queries with d documents, in whatever memory they were computed."""

    def above(self, enough: Floats) -> tuple[Ids, Ids, Floats] | None:
        """What scores more than `enough` [q]: query, document and score of each. None where more than MANY do."""

    def best(self, rows: slice, width: int) -> tuple[Ids, Floats]:
        """At least the `width` best documents of some queries, and their scores: [rows, m], in no order."""


class Strip:
    """The `best` documents [q, width] of some queries, which is filled; only those count that beat `least` [q].

    Most of what is shown does not beat the last of what is there, and is forgotten; the rest is gathered until it is
    worth while to merge it.
    """

    def __init__(self, best: Entries, least: Floats) -> None:
        self._best, self._least = best, least
        self._enough = least.copy()
        self._row: list[npt.NDArray[np.int32]] = []
        self._hits: list[Entries] = []
        self._counts = np.zeros(len(best), np.int64)

    def show(self, first: int, tile: Tile) -> None:
        """The scores of the documents from place `first` on, which come in the order of their places.

        A later one with the score of an earlier one never takes its place.
        """
        found = tile.above(self._enough)
        if found is None:
            for start in range(0, len(self._best), _ROWS):
                rows = slice(start, start + _ROWS)
                ids, scores = tile.best(rows, self._best.shape[1])
                self._merge(rows, entries(ids + first, scores))
            return
        row, column, scores = found
        self._row.append(row.astype(np.int32))
        self._hits.append(entries(column + first, scores))
        self._counts += np.bincount(row, minlength=len(self._counts))
        if self._counts.max(initial=0) > 2 * self._best.shape[1]:  # of any query, so that none makes the others wide
            self.merge()

    def merge(self) -> None:
        """Let `best` hold all that was shown."""
        row = np.concatenate([np.empty(0, np.int32), *self._row])
        order = np.argsort(row, kind="stable")
        row, hits = row[order], np.concatenate([np.empty(0, np.uint64), *self._hits])[order]
        starts = np.concatenate([[0], np.cumsum(self._counts)])
        for start in range(0, len(self._best), _ROWS):
            rows = slice(start, start + _ROWS)
            mine = slice(starts[start], starts[min(rows.stop, len(self._best))])
            side_by_side = np.full((len(self._best[rows]), int(self._counts[rows].max())), NONE)
            side_by_side[row[mine] - start, np.arange(mine.start, mine.stop) - starts[row[mine]]] = hits[mine]
            self._merge(rows, side_by_side)
        self._row.clear()
        self._hits.clear()
        self._counts[:] = 0

    def _merge(self, rows: slice, more: Entries) -> None:
        """Take in entries [n, m] of some queries."""
        best = self._best[rows]
        best[:] = first_of(np.concatenate([best, more], axis=1), best.shape[1])
        self._enough[rows] = np.maximum(self._least[rows], reached(best))


def passing(passes: npt.NDArray[np.bool_]) -> Ids | None:
    """The flat places in a tile that are set; None where that is more than MANY."""
    return None if np.count_nonzero(passes) > MANY * passes.size else np.flatnonzero(passes)


def reached(best: Entries) -> Floats:
    """The score that a further document must beat to be among some best ones [q, width]: [q]; -inf where any is."""
    last = best.max(axis=1, initial=0)
    return np.where(last == NONE, np.float32(-np.inf), scores_of(last))


def first_of(made: Entries, width: int) -> Entries:
    """The `width` first entries of each row of `made` [q, n], which changes places, in no order; all of fewer."""
    if made.shape[1] > width:
        made.partition(width - 1, axis=1)
    return made[:, :width]
