"""Select negatives in a given order and skip near-duplicates of negatives that the same query already has."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Ints, l2_normalise
from stages.mining.candidates.documents import DocumentVectoriser
from stages.retrieval.exact.scoring import pair_scores

_COSINE_PAIRS_PER_BATCH = 8192


class GreedySelection(NamedTuple):
    """The selected rows of the pick order, and the skipped near-duplicates."""

    picks: Ints
    """Row numbers of the pick order, by query and in the order of selection."""
    duplicates_skipped: Ints
    """Row numbers of the pick order, in no order."""


class NearDuplicateFilter:
    """Finds rows of a pool whose documents are near-duplicates: the cosine of their vectors is at least `similarity`.

    Vectors are fetched when they are needed. A cosine depends only on its two documents, to the last bit.
    """

    def __init__(self, doc_ids: pl.Series, similarity: float, vectorise: DocumentVectoriser) -> None:
        self._documents = doc_ids.unique(maintain_order=True)
        codes = pl.DataFrame({"doc_id": self._documents}).with_row_index("document")
        self._document_of_row = (
            doc_ids.to_frame("doc_id")
            .join(codes, on="doc_id", how="left", maintain_order="left")["document"]
            .to_numpy()
        )
        self._slot = np.full(len(self._documents), -1, np.int64)
        self._vectors = np.empty((0, 0), np.float32)
        self._similarity = np.float32(similarity)
        self._vectorise = vectorise

    def fetch_vectors(self, rows: Ints, prefetch_rows: Callable[[], Ints]) -> None:
        """Load the vectors of `rows`. If some are missing, those of `prefetch_rows` are loaded with them."""
        if (self._slot[self._document_of_row[rows]] >= 0).all():
            return
        missing = np.unique(self._document_of_row[np.concatenate([rows, prefetch_rows()])])
        missing = missing[self._slot[missing] < 0]
        vectors = self._vectorise(self._documents.gather(missing).to_frame("doc_id"))
        vectors = l2_normalise(vectors.astype(np.float32, copy=False))
        self._slot[missing] = len(self._vectors) + np.arange(len(missing))
        self._vectors = np.concatenate([self._vectors.reshape(-1, vectors.shape[1]), vectors])

    def is_near_duplicate(self, rows: Ints, selected_rows: Ints) -> Bools:
        """Whether each of `rows` [n] is a near-duplicate of one of its `selected_rows` [n, k]; -1 is an empty cell."""
        out = np.zeros(len(rows), np.bool_)
        left, column = np.nonzero(selected_rows >= 0)
        for start in range(0, len(left), _COSINE_PAIRS_PER_BATCH):
            i, j = left[start : start + _COSINE_PAIRS_PER_BATCH], column[start : start + _COSINE_PAIRS_PER_BATCH]
            row_slots, selected_slots = (
                self._slot[self._document_of_row[rows[i]]],
                self._slot[self._document_of_row[selected_rows[i, j]]],
            )
            cosine = pair_scores(self._vectors[row_slots], self._vectors[selected_slots])
            out[i[cosine >= self._similarity]] = True
        return out


def greedy_select(
    pick_order: pl.DataFrame, is_curated: Bools, n_negatives: int, duplicate_filter: NearDuplicateFilter | None
) -> GreedySelection:
    """Select up to `n_negatives` rows of each query, in the order of `pick_order`.

    `pick_order` (query, row, stratum_index, cap; sorted by query) comes from `strategies.build_pick_order`. A row is
    selected if its query has fewer than `cap` rows of its stratum. A near-duplicate of a selected row is skipped for
    good, unless it is curated (`is_curated` [rows]). Each step of the loop handles one row of every query, so that the
    work is done on arrays; the queries do not depend on each other.
    """
    row, stratum, cap = (pick_order[name].to_numpy().astype(np.int64) for name in ("row", "stratum_index", "cap"))
    query = pick_order["query"].to_numpy()
    starts = np.flatnonzero(np.append(True, query[1:] != query[:-1]))[: len(query)]
    ends = np.append(starts[1:], len(query))
    selected_rows = np.full((len(starts), n_negatives), -1, np.int64)
    selected_picks = selected_rows.copy()
    n_selected = np.zeros(len(starts), np.int64)
    n_by_stratum = np.zeros((len(starts), int(stratum.max(initial=0)) + 1), np.int64)
    is_consumed = np.zeros(len(is_curated), np.bool_)
    position = starts.copy()
    duplicates_skipped = [np.empty(0, np.int64)]
    active = np.arange(len(starts))
    while len(active):
        pick = position[active]
        is_eligible = ~is_consumed[row[pick]] & (n_by_stratum[active, stratum[pick]] < cap[pick])
        active_queries, pick = active[is_eligible], pick[is_eligible]
        rows = row[pick]
        if duplicate_filter is not None and len(rows):
            ahead = np.minimum(position[active, None] + np.arange(n_negatives), ends[active, None] - 1)
            duplicate_filter.fetch_vectors(rows, lambda ahead=ahead: row[ahead.ravel()])  # type: ignore[misc]
            is_duplicate = duplicate_filter.is_near_duplicate(rows, selected_rows[active_queries]) & ~is_curated[rows]
        else:
            is_duplicate = np.zeros(len(rows), np.bool_)
        is_consumed[rows] = True
        duplicates_skipped.append(pick[is_duplicate])
        selecting_queries = active_queries[~is_duplicate]
        cells = selecting_queries, n_selected[selecting_queries]
        selected_rows[cells], selected_picks[cells] = rows[~is_duplicate], pick[~is_duplicate]
        n_by_stratum[selecting_queries, stratum[pick[~is_duplicate]]] += 1
        n_selected[selecting_queries] += 1
        position[active] += 1
        active = active[(position[active] < ends[active]) & (n_selected[active] < n_negatives)]
    return GreedySelection(selected_picks[selected_picks >= 0], np.concatenate(duplicates_skipped))
