"""Hubs: documents that turn up as a negative of very many queries, and a cap on how often one may.

Radovanovic et al., "Hubs in Space", JMLR 2010: in high dimension some points are near to very many others. As negatives
they teach that one document is always wrong.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.hashing import draw

Wants = Callable[["Caps", pl.Series | None], pl.DataFrame]
"""What queries (by number; None: all) take as negatives under caps, without curated ones: query, document, score."""


class Caps:
    """Down to which pair each document of the corpus may be a negative: by score, then by a hash of the pair's ids."""

    def __init__(self, query_ids: pl.Series, doc_ids: pl.Series, seed: int) -> None:
        self._ids = query_ids, doc_ids
        self._seed = seed
        self._score = np.full(len(doc_ids), -np.inf, np.float32)
        self._draw = np.full(len(doc_ids), np.iinfo(np.uint64).max, np.uint64)
        self.turned_away = 0
        """Pairs that had to give way."""

    @property
    def capped(self) -> int:
        """Documents that have reached the cap."""
        return int(np.isfinite(self._score).sum())

    def barred(self, pairs: pl.DataFrame) -> NDArray[np.bool_]:
        """Which of `pairs` (query: number, document: number, score) come after the last one that is let in."""
        document, score = pairs["document"].to_numpy(), pairs["score"].to_numpy()
        out: NDArray[np.bool_] = score < self._score[document]
        tied = np.flatnonzero(score == self._score[document])
        out[tied] = self.draws(pairs[tied]) > self._draw[document[tied]]
        return out

    def draws(self, pairs: pl.DataFrame) -> NDArray[np.uint64]:
        """The hashes by which pairs of equal score are ordered."""
        ids = (numbers.gather(pairs[of]) for numbers, of in zip(self._ids, ("query", "document"), strict=True))
        keys = [draw(self._seed, "hub", f"{query_id}:{doc_id}") for query_id, doc_id in zip(*ids, strict=True)]
        return np.array(keys, dtype=np.uint64)

    def close(self, last: pl.DataFrame, turned_away: int) -> None:
        """Let nothing in after these pairs (document, score, draw)."""
        document = last["document"].to_numpy()
        self._score[document], self._draw[document] = last["score"].to_numpy(), last["draw"].to_numpy()
        self.turned_away += turned_away


def settle(caps: Caps, cap: int, documents: int, wants: Wants) -> Caps:
    """Close `caps` so that no document is a negative of more than `cap` queries.

    Deferred acceptance (Gale & Shapley 1962): every query takes its choice; a document that more than `cap` queries
    take keeps the `cap` where it is hardest (highest score, then smallest hash); the others choose again without it.
    All choose at once in each round, so no order of queries enters. It ends because every round bars pairs for good.
    Where thinning makes a query give up a document it had, that document may end below its cap.

    Memory: 12 bytes a negative that is taken. A round reads the verdicts of those again who were turned away.
    """
    taken = wants(caps, None)
    while True:
        counts = np.bincount(taken["document"].to_numpy(), minlength=documents)
        crowd = taken.filter(pl.Series(counts[taken["document"].to_numpy()] > cap))
        if crowd.is_empty():
            return caps
        crowd = crowd.with_columns(pl.Series("draw", caps.draws(crowd), dtype=pl.UInt64)).sort(
            "document", "score", "draw", descending=[False, True, False]
        )
        place = pl.int_range(pl.len()).over("document")
        away = crowd.filter(place >= cap)
        caps.close(crowd.filter(place == cap - 1), len(away))
        again = away["query"].unique().sort()
        kept = taken.filter(~pl.col("query").is_in(again.implode()))
        taken = pl.concat([kept, wants(caps, again)])
