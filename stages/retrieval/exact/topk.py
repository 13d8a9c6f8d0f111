"""The running top-k of some queries over tiles of scores."""

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
"""Queries and documents of a tile: 4 MB of scores, which fit into the CPU's cache."""
MAX_HIT_SHARE = 0.1
"""If a larger share of a tile passes the thresholds, a top-k of the tile is faster than a list of the hits."""
_MERGE_ROWS = 64
"""Queries whose hits are merged at once: few, to save memory."""


class ScanTask(NamedTuple):
    """Queries and a block of documents to scan."""

    queries: Floats
    documents: Floats
    thresholds: Floats
    """For each query the score that a document must exceed: [q]; -inf for no limit."""


class BlockTopK(NamedTuple):
    """The best documents of a block for each query, among those over its threshold: [q, width], padded with
    `NO_HIT`."""

    hits: PackedHits
    error_bound: npt.NDArray[np.float64]
    """Largest difference of a query's scores from those of `pair_scores`, before the rounding to bfloat16: [q]."""
    n_documents: int


Scanner = Callable[[ScanTask], list[BlockTopK]]
"""A worker function; it keeps none of its tasks."""


@contextmanager
def translate_oom_errors(task: ScanTask, device: str) -> Iterator[None]:
    """Raise `InputError` if the device's memory is too small for a task and its scores."""
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
    """Scores of q queries with d documents, in the memory of the device."""

    def select_above(self, thresholds: Floats) -> tuple[Ints, Ints, Floats] | None:
        """Query, document and score of all scores over `thresholds` [q]; None if more than MAX_HIT_SHARE are."""

    def select_top_k(self, rows: slice, k: int) -> tuple[Ints, Floats]:
        """At least the `k` best documents of some queries and their scores: [rows, m], not sorted."""


class TopKBuffer:
    """The running top-k `hits` [q, width] of some queries, updated in place; only scores over `thresholds` [q] count.

    Most scores do not exceed the k-th best so far and are dropped. The others are collected and merged in batches.
    """

    def __init__(self, hits: PackedHits, thresholds: Floats) -> None:
        self._best, self._min_thresholds = hits, thresholds
        self._thresholds = thresholds.copy()
        self._pending_rows: list[npt.NDArray[np.int32]] = []
        self._pending_hits: list[PackedHits] = []
        self._pending_counts = np.zeros(len(hits), np.int64)

    def update(self, first_document: int, tile: ScoreTile) -> None:
        """Add the scores of the documents from position `first_document` on; tiles must be in ascending order.

        A document never replaces an earlier one with the same score.
        """
        passing = tile.select_above(self._thresholds)
        if passing is None:
            for start in range(0, len(self._best), _MERGE_ROWS):
                rows = slice(start, start + _MERGE_ROWS)
                ids, scores = tile.select_top_k(rows, self._best.shape[1])
                self._merge_hits(rows, pack_hits(ids + first_document, scores))
            return
        row, column, scores = passing
        self._pending_rows.append(row.astype(np.int32))
        self._pending_hits.append(pack_hits(column + first_document, scores))
        self._pending_counts += np.bincount(row, minlength=len(self._pending_counts))
        # the maximum, because `flush` makes all rows as wide as the longest
        if self._pending_counts.max(initial=0) > 2 * self._best.shape[1]:
            self.flush()

    def flush(self) -> None:
        """Merge the collected hits into `hits`."""
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
        """Merge hits [n, m] of some queries."""
        hits = self._best[rows]
        hits[:] = partition_top_k(np.concatenate([hits, new_hits], axis=1), hits.shape[1])
        self._thresholds[rows] = np.maximum(self._min_thresholds[rows], kth_scores(hits))


def find_sparse_hits(mask: npt.NDArray[np.bool_]) -> Ints | None:
    """The flat indices where `mask` is true; None if these are more than MAX_HIT_SHARE."""
    return None if np.count_nonzero(mask) > MAX_HIT_SHARE * mask.size else np.flatnonzero(mask)


def kth_scores(hits: PackedHits) -> Floats:
    """The score that another document must exceed to enter each row [q, width]: [q]; -inf if a row is not full."""
    last = hits.max(axis=1, initial=0)
    return np.where(last == NO_HIT, np.float32(-np.inf), unpack_scores(last))


def partition_top_k(hits: PackedHits, k: int) -> PackedHits:
    """The `k` best entries of each row of `hits` [q, n], not sorted; all if there are fewer. Reorders `hits`."""
    if hits.shape[1] > k:
        hits.partition(k - 1, axis=1)
    return hits[:, :k]
