"""The sweep: which documents could be among a query's best, as fast as matrices are multiplied.

What it finds is only whom to look at; `stages.retrieval.exact.search` scores it again, so nothing here shapes a result.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, tee
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.core.executor import Engine, Worker
from stages.embedding.vector_store import Floats
from stages.retrieval.exact.cpu import Tiles
from stages.retrieval.exact.gpu import TorchSweep
from stages.retrieval.exact.topk import TILE, Found, Item, Sweep, first_of, reached
from stages.retrieval.results import Ids
from stages.retrieval.topk_cache import NONE, places_of, scores_of

_HALF = 2.0**-8
"""The most, relatively, that rounding to bfloat16 changes a number: half of what lies between 1 and the next one."""


class Blocks(Protocol):
    """Vectors of documents [b, d] in the order of their ids 0, 1, 2, ...; begins anew each time it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Floats]: ...


class Swept(NamedTuple):
    """What a sweep found for some queries [q, d]."""

    queries: Floats
    ids: Ids
    """The `width` best documents of each query, or all where there are fewer, best first: [q, w]."""
    scores: Floats
    """Their scores as they were swept. What is not there scores at most as much as the last that is."""
    off: npt.NDArray[np.float64]
    """How far a score of what is there may lie from that of `pair_scores`, and by how much this may surpass the last
    score of what is there, where it is of what is not: [q]."""


def sweeps(
    parts: Iterable[Floats], blocks: Blocks, width: int, engine: Engine, device: str = "cpu", dtype: str = "float32"
) -> Iterator[Swept]:
    """The `width` best documents of each query of each of `parts`, by scores that rounding has touched.

    `dtype`, float32 or bfloat16, is what they are multiplied in.
    """
    made: Callable[[], Sweep]
    made = partial(Tiles, width, dtype) if device == "cpu" else partial(TorchSweep, width, device, dtype)
    begun, asked = tee(map(partial(_Part, width, _HALF if dtype == "bfloat16" else 0.0), parts))
    items = chain.from_iterable(map(part.item, blocks) for part in asked)
    found = engine.map(Worker(made, device), items)
    for part in begun:
        for _ in map(part.add, islice(found, len(blocks))):  # map holds on to none of them
            pass
        yield part.swept()


class _Part:
    """Queries, and the best documents of each in the blocks until now, by scores whose last rounding was by at most
    `rounded` of themselves."""

    def __init__(self, width: int, rounded: float, queries: Floats) -> None:
        self._rounded = rounded / (1 - rounded)
        self._queries, self._best = queries, np.full((len(queries), width), NONE)
        self._documents, self._off = 0, np.zeros(len(queries))

    def item(self, documents: Floats) -> Item:
        """A block to sweep. Where several are swept at once, `least` may be of fewer blocks than it could be."""
        return Item(self._queries, documents, reached(self._best))

    def add(self, block: Found) -> None:
        """Take in what the next block has."""
        for start in range(0, len(self._best), TILE[0]):
            best, more = (made[start : start + TILE[0]] for made in (self._best, block.best))
            there = np.where(more == NONE, NONE, more + np.uint64(self._documents))
            best[:] = first_of(np.concatenate([best, there], axis=1), best.shape[1])
        self._documents += block.documents
        self._off = np.maximum(self._off, block.off)

    def swept(self) -> Swept:
        """What there is after all blocks; this is of no more use then."""
        best, self._best = self._best[:, : self._documents], np.empty((0, 0), np.uint64)
        best.sort(axis=1)
        scores = scores_of(best)
        # rounding changes no order: it hides no more of what is not there than of the last that is
        return Swept(
            self._queries, places_of(best), scores, self._off + self._rounded * np.abs(scores).max(axis=1, initial=0)
        )
