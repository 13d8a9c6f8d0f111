"""Dense retrieval that goes on from the last search: it costs what changed, and gives what a search from nothing gives.

The lists of the last search lie beside the encoder's vectors, a little deeper than was asked for, so that most queries
can lose a document without being searched again. They are no part of an artifact: how deep a list still reaches depends
on the workspace's history, the candidates do not.
"""

import numpy as np
import numpy.typing as npt
import xxhash

from stages.core.schemas import Progress, Summary
from stages.retrieval.dense import Dense
from stages.retrieval.results import Found, Ids
from stages.retrieval.topk_cache import NONE, Draft, Entries, Lists, entries, moved, places_of, read_lists, scores_of

_QUERIES = 16_384
"""Queries searched in full at once, at most: enough to multiply matrices at full speed."""
_ROWS = 4_096
"""Lists brought up to date at once."""


class Incremental:
    """The `end` best documents of every query of `dense`, brought up to date when this is made.

    `version` names the code whose scores are the same to the bit.

    Method. Of an old list those documents are dropped that are gone or have another text; new ones are added where
    they reach its last entry. Whatever else there is ranked after that last entry and still does, so the merged list is
    exact as far as that entry's place. A query is searched in full where this is less than `end`, or where it is new;
    all are where more than half of the documents are new. The tables may be in any order, as long as it is the same
    among the documents that stayed; else the old lists are not used.
    """

    def __init__(self, dense: Dense, end: int, version: int, progress: Progress) -> None:
        self._dense, self._progress, self._done = dense, progress, 0
        self._size = len(dense.doc_ids)
        self._end = min(end, self._size)
        self._width = max(1, min(end + _reserve(end), self._size))
        store = dense.vectors.store
        folder, made_of = store.folder / "lists", {"search": version, "numpy": np.__version__}
        documents = _identities(dense)
        old = read_lists(folder, made_of, store.names)
        draft = Draft(folder, dense.query_hashes, self._width)
        lacking, new = self._merge(old, documents, draft)
        # of one size: each goes through all documents, which does not pay for few queries
        parts = np.array_split(lacking, -(-len(lacking) // _QUERIES)) if len(lacking) else []
        for part, best in zip(parts, dense.best(parts, self._width), strict=True):
            draft.put(part, entries(*best))
            self._advance(len(part))
        self._lists = draft.commit(documents, made_of, store.names)
        self.summary: Summary = {
            "new documents": new,
            "merged": len(dense.query_hashes) - len(lacking),
            "in full": len(lacking),
        }
        """How many documents were new, and how many queries were merged or searched in full."""

    def find(self, queries: Ids, end: int) -> Found:
        """The first `end` ranks of each query, as far as they were brought up to date; all where there are fewer."""
        found = self._lists.read(queries)[:, : min(end, self._end)]
        return Found.ranked(np.full(len(found), found.shape[1]), places_of(found).ravel(), scores_of(found).ravel())

    def _merge(self, old: Lists | None, documents: npt.NDArray[np.bytes_], draft: Draft) -> tuple[Ids, int]:
        """Put every list that can be had from an old one; returns the other queries, and how many documents are new."""
        everyone = np.arange(len(self._dense.query_hashes))
        if old is None or not len(old.documents):
            return everyone, self._size
        to = _places(old.documents, documents)
        stayed = to[to >= 0]
        new = np.setdiff1d(np.arange(self._size), stayed, assume_unique=True)
        if 2 * len(new) > self._size or (np.diff(stayed) <= 0).any():
            return everyone, len(new)
        rows = old.find(self._dense.query_hashes)
        following = _following(to, self._size)
        lacking = [everyone[rows < 0]]
        known = everyone[rows >= 0]
        for start in range(0, len(known), _ROWS):
            part = known[start : start + _ROWS]
            lists = self._merged(part, old.read(rows[part]), to, following, new)
            enough = (lists != NONE).sum(axis=1) >= self._end
            draft.put(part[enough], lists[enough])
            lacking.append(part[~enough])
            self._advance(int(enough.sum()))
        return np.sort(np.concatenate(lacking)), len(new)

    def _merged(self, queries: Ids, old: Entries, to: Ids, following: Ids, new: Ids) -> Entries:
        """The lists of some queries [q, width] as far as they are exact, from the old ones and the new documents."""
        limit = _limits(old, following)
        rest = moved(old, to)
        if len(new):
            least = np.where(limit == NONE, np.float32(-np.inf), scores_of(limit))
            row, place, score = self._dense.above(queries, new, self._width, least)
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            added = np.full((len(queries), int(rank.max(initial=-1)) + 1), NONE)
            added[row, rank] = entries(place, score)
            rest = np.concatenate([rest, added], axis=1)
        rest[rest >= limit[:, None]] = NONE
        return np.sort(rest, axis=1)[:, : self._width]

    def _advance(self, queries: int) -> None:
        self._done += queries
        self._progress.advance(self._done, len(self._dense.query_hashes), "lists")


def _reserve(end: int) -> int:
    """How much deeper than `end` lists are searched. They lose a share of their entries, so it is a share of them."""
    return 8 + end // 8


def _identities(dense: Dense) -> npt.NDArray[np.bytes_]:
    """What tells a document under its id and with its text from every other, 16 bytes each."""
    text, ids = dense.document_hashes.tobytes(), dense.doc_ids
    digests = (xxhash.xxh3_128_digest(text[16 * i : 16 * i + 16] + one.encode()) for i, one in enumerate(ids))
    return np.frombuffer(b"".join(digests), "S16")


def _places(old: npt.NDArray[np.bytes_], new: npt.NDArray[np.bytes_]) -> Ids:
    """Where each of `old` stands in `new`, or -1."""
    if not len(new):
        return np.full(len(old), -1)
    order = np.argsort(new)
    at = np.minimum(np.searchsorted(new[order], old), len(new) - 1)
    return np.where(new[order[at]] == old, order[at], -1)


def _following(to: Ids, size: int) -> Ids:
    """For each old place the new place of the first document after it that stayed; `size` where none did."""
    later = np.append(np.where(to < 0, size, to), size)[1:]
    return np.minimum.accumulate(later[::-1])[::-1]


def _limits(old: Entries, following: Ids) -> Entries:
    """Up to which entry (it not included) each list [q, width] is exact once its places are the new ones: [q].

    What a list did not hold stands behind its last entry: it scores less, or as much from a later place. Of the
    documents that stayed, the first at a later place is `following`. A list of the whole corpus has no limit.
    """
    held = (old != NONE).sum(axis=1)
    last = np.take_along_axis(old, np.maximum(held - 1, 0)[:, None], 1)[:, 0]
    limit = entries(following[places_of(last)], scores_of(last))
    return np.where(held == len(following), NONE, limit)
