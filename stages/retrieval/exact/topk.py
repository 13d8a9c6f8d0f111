"""A strip: some queries, and the best documents of each among the scores that it was shown until now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Floats, Ints
from stages.core.errors import InputError
from stages.core.memory import is_oom
from stages.retrieval.exact.packed_hits import NO_HIT, PackedHits, pack_hits, unpack_scores

TILE_SHAPE = 1_024, 1_024
"""Queries and documents multiplied at once: 4 MB of scores, which fit into the CPU's cache."""
MAX_HIT_SHARE = 0.1
"""Share of a tile that passes, above which it is not worth while to find out which documents do."""
_MERGE_ROWS = 64
"""Queries that what was found is merged for at once: few, so that this needs little memory."""


class ScanTask(NamedTuple):
    """Queries that a block of documents is scanned for."""

    queries: Floats
    documents: Floats
    thresholds: Floats
    """The score that a document must beat for each query: [q]; -inf where any will do."""


class BlockTopK(NamedTuple):
    """Of one block the best documents of each query, at least of those that beat its `thresholds`: [q, width], with
    NONE."""

    hits: PackedHits
    error_bound: npt.NDArray[np.float64]
    """How far a query's scores lay from those of `pair_scores` before they were rounded to bfloat16, at most: [q]."""
    n_documents: int


Scanner = Callable[[ScanTask], list[BlockTopK]]
"""A worker; it holds on to none of its items."""


@contextmanager
def translate_oom_errors(task: ScanTask, device: str) -> Iterator[None]:
    """Raises `InputError` where the device's memory does not hold an item and its scores."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        elsewhere = "" if device == "cpu" else " or search on the CPU: [run] device = 'cpu'."
        raise InputError(
            f"the memory of {device} does not hold {len(task.documents):,} vectors and their scores. Free "
            f"it{elsewhere or '.'}"
        ) from error


class ScoreTile(Protocol):
    """Scores of q queries with d documents, in whatever memory they were computed."""

    def select_above(self, thresholds: Floats) -> tuple[Ints, Ints, Floats] | None:
        """What scores more than `thresholds` [q]: query, document and score of each. None where more than MANY do."""

    def select_top_k(self, rows: slice, k: int) -> tuple[Ints, Floats]:
        """At least the `k` best documents of some queries, and their scores: [rows, m], in no order."""


class TopKBuffer:
    """The `hits` documents [q, width] of some queries, which is filled; only those count that beat `thresholds` [q].

    Most of what is shown does not beat the last of what is there, and is forgotten; the rest is gathered until it is
    worth while to merge it.
    """

    def __init__(self, hits: PackedHits, thresholds: Floats) -> None:
        self._best, self._min_thresholds = hits, thresholds
        self._thresholds = thresholds.copy()
        self._pending_rows: list[npt.NDArray[np.int32]] = []
        self._pending_hits: list[PackedHits] = []
        self._pending_counts = np.zeros(len(hits), np.int64)

    def update(self, first_document: int, tile: ScoreTile) -> None:
        """The scores of the documents from place `first_document` on, which come in the order of their places.

        A later one with the score of an earlier one never takes its place.
        """
        found = tile.select_above(self._thresholds)
        if found is None:
            for start in range(0, len(self._best), _MERGE_ROWS):
                rows = slice(start, start + _MERGE_ROWS)
                ids, scores = tile.select_top_k(rows, self._best.shape[1])
                self._merge_hits(rows, pack_hits(ids + first_document, scores))
            return
        row, column, scores = found
        self._pending_rows.append(row.astype(np.int32))
        self._pending_hits.append(pack_hits(column + first_document, scores))
        self._pending_counts += np.bincount(row, minlength=len(self._pending_counts))
        if (
            self._pending_counts.max(initial=0) > 2 * self._best.shape[1]
        ):  # of any query, so that none makes the others wide
            self.flush()

    def flush(self) -> None:
        """Let `hits` hold all that was shown."""
        row = np.concatenate([np.empty(0, np.int32), *self._pending_rows])
        order = np.argsort(row, kind="stable")
        row, hits = row[order], np.concatenate([np.empty(0, np.uint64), *self._pending_hits])[order]
        starts = np.concatenate([[0], np.cumsum(self._pending_counts)])
        for start in range(0, len(self._best), _MERGE_ROWS):
            rows = slice(start, start + _MERGE_ROWS)
            span = slice(starts[start], starts[min(rows.stop, len(self._best))])
            new_hits = np.full((len(self._best[rows]), int(self._pending_counts[rows].max())), NO_HIT)
            new_hits[row[span] - start, np.arange(span.start, span.stop) - starts[row[span]]] = hits[span]
            self._merge_hits(rows, new_hits)
        self._pending_rows.clear()
        self._pending_hits.clear()
        self._pending_counts[:] = 0

    def _merge_hits(self, rows: slice, new_hits: PackedHits) -> None:
        """Take in entries [n, m] of some queries."""
        hits = self._best[rows]
        hits[:] = partition_top_k(np.concatenate([hits, new_hits], axis=1), hits.shape[1])
        self._thresholds[rows] = np.maximum(self._min_thresholds[rows], kth_scores(hits))


def find_sparse_hits(mask: npt.NDArray[np.bool_]) -> Ints | None:
    """The flat places in a tile that are set; None where that is more than MANY."""
    return None if np.count_nonzero(mask) > MAX_HIT_SHARE * mask.size else np.flatnonzero(mask)


def kth_scores(hits: PackedHits) -> Floats:
    """The score that a further document must beat to be among some best ones [q, width]: [q]; -inf where any is."""
    last = hits.max(axis=1, initial=0)
    return np.where(last == NO_HIT, np.float32(-np.inf), unpack_scores(last))


def partition_top_k(hits: PackedHits, k: int) -> PackedHits:
    """The `k` first entries of each row of `hits` [q, n], which changes places, in no order; all of fewer."""
    if hits.shape[1] > k:
        hits.partition(k - 1, axis=1)
    return hits[:, :k]
