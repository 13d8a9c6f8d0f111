"""Dense retrieval that goes on from the last search: it costs what changed, and gives what a search from nothing gives.

The lists of the last search lie beside the encoder's vectors, a little deeper than requested, so that most queries
can lose a document without being searched again. They are no part of an artifact: how deep a list still reaches depends
on the workspace's history, the candidates do not.
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
"""Queries searched in full at once, at most: enough to multiply matrices at full speed."""
_MERGE_BATCH_QUERIES = 4_096
"""Lists brought up to date at once."""


class IncrementalSearch:
    """The `top_k` best documents of every query of `dense`, brought up to date when this is made.

    `version` names the code whose scores are the same to the bit.

    Method. Of an old list those documents are dropped that are gone or have another text; new ones are added where
    they reach its last entry. Whatever else there is ranked after that last entry and still does, so the merged list is
    exact as far as that entry's place. A query is searched in full where this is less than `top_k`, or where it is new;
    all are where more than half of the documents are new. The tables may be in any order, as long as it is the same
    among the documents that stayed; else the old lists are not used.
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
        # of one size: each goes through all documents, which does not pay for few queries
        parts = np.array_split(to_search, -(-len(to_search) // _FULL_SEARCH_QUERIES)) if len(to_search) else []
        for part, best in zip(parts, dense.search_batches(parts, self._width), strict=True):
            cache_writer.write_rows(part, pack_hits(*best))
            self._report_progress(len(part))
        self._cache = cache_writer.commit(document_keys, code_versions, store.segment_names)
        self.summary: Summary = {
            "n_new_documents": n_new,
            "n_merged_queries": len(dense.query_ids) - len(to_search),
            "n_searched_queries": len(to_search),
        }
        """How many documents were new, and how many queries were merged or searched in full."""

    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The first `top_k` ranks of each query, as far as they were brought up to date; all where there are fewer."""
        hits = self._cache.read_rows(queries)[:, : min(top_k, self._top_k)]
        return SearchResults.from_rankings(
            np.full(len(hits), hits.shape[1]), unpack_documents(hits).ravel(), unpack_scores(hits).ravel()
        )

    def _merge_cached_queries(
        self, old_cache: TopKCache | None, document_keys: npt.NDArray[np.bytes_], cache_writer: TopKWriter
    ) -> tuple[Ints, int]:
        """Put every list that can be had from an old one; returns the other queries, and how many documents are new."""
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
        """The lists of some queries [q, width] as far as they are exact, from the old ones and the new documents."""
        limit = _exactness_limits(old_hits, next_kept)
        hits = remap_hits(old_hits, new_positions)
        if len(new_documents):
            min_scores = np.where(limit == NO_HIT, np.float32(-np.inf), unpack_scores(limit))
            row, document, score = self._dense.search_above(queries, new_documents, self._width, min_scores)
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            new_hits = np.full((len(queries), int(rank.max(initial=-1)) + 1), NO_HIT)
            new_hits[row, rank] = pack_hits(document, score)
            hits = np.concatenate([hits, new_hits], axis=1)
        hits[hits >= limit[:, None]] = NO_HIT
        return np.sort(hits, axis=1)[:, : self._width]

    def _report_progress(self, queries: int) -> None:
        self._n_done += queries
        self._progress.advance(self._n_done, len(self._dense.query_ids), "lists")


def _extra_depth(top_k: int) -> int:
    """How much deeper than `top_k` lists are searched. They lose a share of their entries, so it is a share of them."""
    return 8 + top_k // 8


def _make_document_keys(dense: DenseRetriever) -> npt.NDArray[np.bytes_]:
    """What tells a document under its id and with its text from every other, 16 bytes each."""
    text, ids = dense.vectors.document_hashes.tobytes(), dense.doc_ids
    digests = (xxhash.xxh3_128_digest(text[16 * i : 16 * i + 16] + one.encode()) for i, one in enumerate(ids))
    return np.frombuffer(b"".join(digests), "S16")


def _find_key_positions(old: npt.NDArray[np.bytes_], new: npt.NDArray[np.bytes_]) -> Ints:
    """Where each of `old_cache` stands in `new_documents`, or -1."""
    if not len(new):
        return np.full(len(old), -1)
    order = np.argsort(new)
    at = np.minimum(np.searchsorted(new[order], old), len(new) - 1)
    return np.where(new[order[at]] == old, order[at], -1)


def _next_kept_positions(new_positions: Ints, n_documents: int) -> Ints:
    """For each old place the new place of the first document after it that stayed; `n_documents` where none did."""
    later = np.append(np.where(new_positions < 0, n_documents, new_positions), n_documents)[1:]
    return np.minimum.accumulate(later[::-1])[::-1]


def _exactness_limits(old_hits: PackedHits, next_kept: Ints) -> PackedHits:
    """Up to which entry (it not included) each list [q, width] is exact once its places are the new ones: [q].

    What a list did not hold stands behind its last entry: it scores less, or as much from a later place. Of the
    documents that stayed, the first at a later place is `next_kept`. A list of the whole corpus has no limit.
    """
    n_hits = (old_hits != NO_HIT).sum(axis=1)
    last = np.take_along_axis(old_hits, np.maximum(n_hits - 1, 0)[:, None], 1)[:, 0]
    limit = pack_hits(next_kept[unpack_documents(last)], unpack_scores(last))
    return np.where(n_hits == len(next_kept), NO_HIT, limit)
