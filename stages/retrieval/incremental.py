"""Incremental dense retrieval: it updates the lists of the last search, with the same result as a full search.

The lists are stored beside the encoder's vectors, a little deeper than requested, so that most queries can lose a
document without a new search. They are not part of an artifact: their depth depends on the workspace's history, and the
candidates do not.
"""

import numpy as np
import numpy.typing as npt
import xxhash

from stages.core.arrays import Ints
from stages.core.context import Progress, Summary
from stages.retrieval.dense import DenseRetriever
from stages.retrieval.exact.packed_hits import (
    NO_HIT,
    PackedHits,
    pack_hits,
    remap_hits,
    unpack_documents,
    unpack_scores,
)
from stages.retrieval.results import SearchResults
from stages.retrieval.topk_cache import TOPK_CACHE_FOLDER, TopKCache, TopKWriter, read_topk_cache

_FULL_SEARCH_QUERIES = 16_384
"""Most queries of one full search: enough to multiply matrices at full speed."""
_MERGE_BATCH_QUERIES = 4_096
"""Lists updated at once."""


class IncrementalSearch:
    """The `top_k` best documents of every query of `dense`, updated by the constructor.

    `version` is changed if the code gives scores with other bits.

    Method: documents that were removed or have another text are dropped from an old list, and new documents that reach
    its last entry are added. All other documents were ranked after that entry and still are, so the merged list is
    exact up to there. A query is searched in full if it is new or if its exact part is shorter than `top_k`, and all
    queries are if more than half of the documents are new. The old lists are not used if the documents that remain are
    in another order.
    """

    def __init__(self, dense: DenseRetriever, top_k: int, version: int, progress: Progress) -> None:
        self._dense, self._progress, self._n_done = dense, progress, 0
        self._n_documents = len(dense.doc_ids)
        self._top_k = min(top_k, self._n_documents)
        self._width = max(1, min(top_k + _extra_depth(top_k), self._n_documents))
        store = dense.vectors.store
        folder, code_versions = store.folder / TOPK_CACHE_FOLDER, {"search": version, "numpy": np.__version__}
        document_keys = _make_document_keys(dense)
        old_cache = read_topk_cache(folder, code_versions, store.segment_names)
        cache_writer = TopKWriter(folder, dense.vectors.query_hashes, self._width)
        to_search, n_new = self._merge_cached_queries(old_cache, document_keys, cache_writer)
        # parts of equal size: each one scans all documents, which is slow for few queries
        parts = np.array_split(to_search, -(-len(to_search) // _FULL_SEARCH_QUERIES)) if len(to_search) else []
        for part, ranking in zip(parts, dense.search_batches(parts, self._width), strict=True):
            cache_writer.write_rows(part, pack_hits(*ranking))
            self._report_progress(len(part))
        self._cache = cache_writer.commit(document_keys, code_versions, store.segment_names)
        self.summary: Summary = {
            "n_new_documents": n_new,
            "n_merged_queries": len(dense.query_ids) - len(to_search),
            "n_searched_queries": len(to_search),
        }
        """How many documents were new, and how many queries were merged or searched in full."""

    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The first `top_k` ranks of each query; all documents if there are fewer."""
        hits = self._cache.read_rows(queries)[:, : min(top_k, self._top_k)]
        return SearchResults.from_rankings(
            np.full(len(hits), hits.shape[1]), unpack_documents(hits).ravel(), unpack_scores(hits).ravel()
        )

    def _merge_cached_queries(
        self, old_cache: TopKCache | None, document_keys: npt.NDArray[np.bytes_], cache_writer: TopKWriter
    ) -> tuple[Ints, int]:
        """Write every list that an old one gives; returns the other queries, and how many documents are new."""
        all_queries = np.arange(len(self._dense.query_ids))
        if old_cache is None or not len(old_cache.document_keys):
            return all_queries, self._n_documents
        new_positions = _find_key_positions(old_cache.document_keys, document_keys)
        kept_positions = new_positions[new_positions >= 0]
        new_documents = np.setdiff1d(np.arange(self._n_documents), kept_positions, assume_unique=True)
        if 2 * len(new_documents) > self._n_documents or (np.diff(kept_positions) <= 0).any():
            return all_queries, len(new_documents)
        rows = old_cache.find_rows(self._dense.vectors.query_hashes)
        next_kept = _next_kept_positions(new_positions, self._n_documents)
        to_search = [all_queries[rows < 0]]
        cached_queries = all_queries[rows >= 0]
        for start in range(0, len(cached_queries), _MERGE_BATCH_QUERIES):
            part = cached_queries[start : start + _MERGE_BATCH_QUERIES]
            hits = self._merge_hits(part, old_cache.read_rows(rows[part]), new_positions, next_kept, new_documents)
            is_complete = (hits != NO_HIT).sum(axis=1) >= self._top_k
            cache_writer.write_rows(part[is_complete], hits[is_complete])
            to_search.append(part[~is_complete])
            self._report_progress(int(is_complete.sum()))
        return np.sort(np.concatenate(to_search)), len(new_documents)

    def _merge_hits(
        self, queries: Ints, old_hits: PackedHits, new_positions: Ints, next_kept: Ints, new_documents: Ints
    ) -> PackedHits:
        """The exact part of the lists of some queries [q, width], from the old lists and the new documents."""
        limits = _exactness_limits(old_hits, next_kept)
        hits = remap_hits(old_hits, new_positions)
        if len(new_documents):
            min_scores = np.where(limits == NO_HIT, np.float32(-np.inf), unpack_scores(limits))
            row, document, score = self._dense.search_above(queries, new_documents, self._width, min_scores)
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            new_hits = np.full((len(queries), int(rank.max(initial=-1)) + 1), NO_HIT)
            new_hits[row, rank] = pack_hits(document, score)
            hits = np.concatenate([hits, new_hits], axis=1)
        hits[hits >= limits[:, None]] = NO_HIT
        return np.sort(hits, axis=1)[:, : self._width]

    def _report_progress(self, queries: int) -> None:
        self._n_done += queries
        self._progress.advance(self._n_done, len(self._dense.query_ids), "lists")


def _extra_depth(top_k: int) -> int:
    """How much deeper than `top_k` the lists are; a share of it, because lists lose a share of their entries."""
    return 8 + top_k // 8


def _make_document_keys(dense: DenseRetriever) -> npt.NDArray[np.bytes_]:
    """The hash of each document's id and text, 16 bytes."""
    text, ids = dense.vectors.document_hashes.tobytes(), dense.doc_ids
    digests = (xxhash.xxh3_128_digest(text[16 * i : 16 * i + 16] + one.encode()) for i, one in enumerate(ids))
    return np.frombuffer(b"".join(digests), "S16")


def _find_key_positions(old: npt.NDArray[np.bytes_], new: npt.NDArray[np.bytes_]) -> Ints:
    """The position of each key of `old` in `new`, or -1."""
    if not len(new):
        return np.full(len(old), -1)
    order = np.argsort(new)
    positions = order[np.minimum(np.searchsorted(new[order], old), len(new) - 1)]
    return np.where(new[positions] == old, positions, -1)


def _next_kept_positions(new_positions: Ints, n_documents: int) -> Ints:
    """For each old position the new position of the next document that remains; `n_documents` if none does."""
    later = np.append(np.where(new_positions < 0, n_documents, new_positions), n_documents)[1:]
    return np.minimum.accumulate(later[::-1])[::-1]


def _exactness_limits(old_hits: PackedHits, next_kept: Ints) -> PackedHits:
    """The entry before which each list [q, width] is exact with the new positions: [q].

    A document that is not in a list ranks after its last entry: it has a lower score, or the same score and a later
    position. `next_kept` is the first later position that remains. A list of the whole corpus has no limit.
    """
    n_hits = (old_hits != NO_HIT).sum(axis=1)
    last = np.take_along_axis(old_hits, np.maximum(n_hits - 1, 0)[:, None], 1)[:, 0]
    limits = pack_hits(next_kept[unpack_documents(last)], unpack_scores(last))
    return np.where(n_hits == len(next_kept), NO_HIT, limits)
