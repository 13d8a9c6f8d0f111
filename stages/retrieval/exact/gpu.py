"""The sweep on a GPU, by torch."""

from typing import Any

import numpy as np

from stages.core.memory import ran_out
from stages.embedding.vector_store import Floats
from stages.retrieval.exact.scoring import COARSE, Doubles, off_by
from stages.retrieval.exact.topk import MANY, Found, Item, Strip, within_memory
from stages.retrieval.results import Ids
from stages.retrieval.topk_cache import NONE

_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB in float32."""


class TorchSweep:
    """A worker that multiplies by torch.

    In float32 itself, never TF32; in bfloat16 with sums in float32. How far its scores may lie from those of
    `pair_scores`, but for their last rounding, is measured with every block (`off`). Where the device's memory does not
    hold so many scores at once, it has half as many from then on; `InputError` where it does not hold those of one
    query.
    """

    def __init__(self, width: int, device: str, dtype: str) -> None:
        self._width, self._device, self._dtype, self._scores = width, device, dtype, _SCORES

    def __call__(self, item: Item) -> list[Found]:
        import torch

        matmul = torch.backends.cuda.matmul
        before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
        torch.set_float32_matmul_precision("highest")
        matmul.allow_bf16_reduced_precision_reduction = False
        try:
            with within_memory(item, self._device):
                return [self._swept(item)]
        finally:
            torch.set_float32_matmul_precision(before[0])
            matmul.allow_bf16_reduced_precision_reduction = before[1]

    def _swept(self, item: Item) -> Found:
        import torch

        queries, documents, least = item
        given = torch.tensor(documents, device=self._device)
        there = given.to(getattr(torch, self._dtype))
        longest, changed = (float(_lengths(one).max(initial=0)) for one in (given, given - there.float()))
        del given
        best, off = np.full((len(queries), self._width), NONE), np.empty(len(queries))
        units = 1 if self._dtype == "float32" else COARSE
        start = 0
        while start < len(queries):
            rows = max(1, self._scores // max(1, len(documents)))
            part = slice(start, start + rows)
            try:
                asked = torch.tensor(queries[part], device=self._device)
                made = asked.to(there.dtype)
                mine = np.full((len(asked), self._width), NONE)  # what a part has that did not end is not kept
                strip = Strip(mine, least[part])
                strip.show(0, _TorchTile(made @ there.T))
                strip.merge()
                length, change = _lengths(asked), _lengths(asked - made.float())
                best[part] = mine
                off[part] = off_by(length, longest, queries.shape[1], change, changed, units)
            except RuntimeError as error:
                self._scores //= 2
                if not ran_out(error) or self._scores < len(documents):
                    raise
                continue
            start = part.stop
        return Found(best, off, len(documents))


def _lengths(vectors: Any) -> Doubles:
    """Of a tensor [n, d], in float64, where none vanishes: [n]."""
    import torch

    found: Doubles = torch.linalg.vector_norm(vectors.double(), dim=1).cpu().numpy()
    return found


class _TorchTile:
    """Scores [q, d] as a tensor."""

    def __init__(self, scores: Any) -> None:
        self._scores = scores

    def above(self, enough: Floats) -> tuple[Ids, Ids, Floats] | None:
        import torch

        # what must be beaten is a score of this very format, so nothing is lost where it is made one again
        passes = self._scores > torch.tensor(enough, device=self._scores.device).to(self._scores.dtype)[:, None]
        if int(passes.count_nonzero()) > MANY * passes.numel():
            return None
        row, column = passes.nonzero(as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy(), self._scores[row, column].float().cpu().numpy()

    def best(self, rows: slice, width: int) -> tuple[Ids, Floats]:
        import torch

        some = self._scores[rows].float()
        scores, ids = torch.topk(some, min(width, some.shape[1]), sorted=False)
        return ids.cpu().numpy(), scores.cpu().numpy()
