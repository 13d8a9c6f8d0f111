"""Scores on a CPU in bfloat16, half as wide as float32: several times as fast where it has instructions for them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from stages.embedding.vector_store import Floats
from stages.retrieval.exact.scoring import COARSE, lengths, off_by
from stages.retrieval.exact.topk import passing
from stages.retrieval.results import Ids

Bits = npt.NDArray[np.int16]
"""Numbers in bfloat16, bit by bit: the upper half of float32's."""


class Halves:
    """The scores of some queries with a block of documents, in bfloat16 by torch (oneDNN), with sums in float32."""

    def __init__(self, queries: Floats, documents: Floats, cut: list[slice], pool: ThreadPoolExecutor) -> None:
        import torch

        self._cut = cut
        self._documents = torch.empty(documents.shape, dtype=torch.bfloat16)
        self._queries = torch.empty(queries.shape, dtype=torch.bfloat16)
        q, dq = np.empty((2, len(queries)))

        def of_documents(part: slice) -> tuple[float, float]:
            self._documents[part] = torch.tensor(documents[part])
            changed = documents[part] - self._documents[part].float().numpy()
            return float(lengths(documents[part]).max()), float(lengths(changed).max())

        def of_queries(part: slice) -> None:
            self._queries[part] = torch.tensor(queries[part])
            q[part], dq[part] = lengths(queries[part]), lengths(queries[part] - self._queries[part].float().numpy())

        asked = [slice(start, start + 1_024) for start in range(0, len(queries), 1_024)]
        for _ in pool.map(of_queries, asked):
            pass
        x, dx = np.max([(0.0, 0.0), *pool.map(of_documents, cut)], axis=0)
        self.off = off_by(q, x, queries.shape[1], dq, dx, COARSE)
        """How far each query's scores lay from exact ones before they were rounded to bfloat16, at most: [q]."""

    def tiles(self, rows: slice) -> Iterator[tuple[int, "_Tile"]]:
        """The scores of some queries, a tile at a time, and the place of its first document."""
        import torch

        queries = self._queries[rows]
        scores, passes = torch.empty((len(queries), 0), dtype=torch.bfloat16), np.empty((len(queries), 0), np.bool_)
        for part in self._cut:
            documents = self._documents[part]
            if scores.shape[1] != len(documents):
                scores = torch.empty((len(queries), len(documents)), dtype=torch.bfloat16)
                passes = np.empty(tuple(scores.shape), np.bool_)
            with torch.inference_mode():
                torch.mm(queries, documents.T, out=scores)
            yield part.start, _Tile(scores.view(torch.int16).numpy(), passes)


class _Tile:
    """Scores [q, d] in bfloat16, and room to compare them in."""

    def __init__(self, scores: Bits, passes: npt.NDArray[np.bool_]) -> None:
        self._scores, self._passes = scores, passes

    def above(self, enough: Floats) -> tuple[Ids, Ids, Floats] | None:
        # What must be beaten is a score of this very format, so nothing is lost where it is made one again. Of numbers
        # that are not negative the bits are in their order, and what is negative comes before them.
        given, least = self._scores, (enough.view(np.int32) >> 16).astype(np.int16)
        if least.min() < 0:
            given, least = _rising(given), _rising(least)
        np.greater(given, least[:, None], out=self._passes)
        places = passing(self._passes)
        if places is None:
            return None
        row, column = np.divmod(places, self._scores.shape[1])
        return row, column, _floats(self._scores.ravel()[places])

    def best(self, rows: slice, width: int) -> tuple[Ids, Floats]:
        return np.arange(self._scores.shape[1]), _floats(self._scores[rows])


def _rising(bits: Bits) -> Bits:
    """Whole numbers in the order of the numbers that `bits` stand for."""
    return bits ^ ((bits >> 15) & np.int16(0x7FFF))


def _floats(bits: Bits) -> Floats:
    return (bits.astype(np.int32) << 16).view(np.float32)
