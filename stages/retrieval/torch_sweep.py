"""The sweep by torch: on a GPU, and in bfloat16 where a CPU or GPU multiplies faster in it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import InputError
from stages.retrieval.lists import NONE
from stages.retrieval.sources import Ids
from stages.retrieval.strip import MANY, TILE, Found, Item, Strip
from stages.retrieval.vectors import Floats

_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB in float32."""
_SLACK = 1 + 2.0**-10
"""Lengths are taken in float32; that they are too small by its rounding is more than made up for."""
_HALF = 2.0**-9
"""The most, relatively, that rounding to bfloat16 changes a number (it has 8 bits)."""


class TorchSweep:
    """A worker that multiplies by torch.

    In float32 itself, never TF32; in bfloat16 with sums in float32. How far its scores may lie from those of
    `pair_scores` is measured with every block (`off`). Where the device's memory does not hold so many scores at once,
    it has half as many from then on; `InputError` where it does not hold those of one query.
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
            return [self._swept(item)]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the memory of {self._device} does not hold {len(item.documents):,} vectors and their scores. Free "
                'it, lower block under [mine], or search on the CPU: search_device = "cpu".'
            ) from error
        finally:
            torch.set_float32_matmul_precision(before[0])
            matmul.allow_bf16_reduced_precision_reduction = before[1]

    def _swept(self, item: Item) -> Found:
        import torch

        queries, documents, least = item
        given = torch.tensor(documents, device=self._device)
        there = given.to(getattr(torch, self._dtype))
        longest, changed = (float(torch.linalg.vector_norm(one, dim=1).max()) for one in (given, given - there.float()))
        del given
        best, off = np.full((len(queries), self._width), NONE), np.empty(len(queries))
        across = TILE[1] if self._device == "cpu" else len(documents)
        start = 0
        while start < len(queries):
            rows = TILE[0] if self._device == "cpu" else max(1, self._scores // max(1, len(documents)))
            part = slice(start, start + rows)
            try:
                asked = torch.tensor(queries[part], device=self._device)
                made = asked.to(there.dtype)
                mine = np.full((len(asked), self._width), NONE)  # what a part has that did not end is not kept
                strip = Strip(mine, least[part])
                for first in range(0, len(documents), across):
                    strip.show(first, _TorchTile(made @ there[first : first + across].T))
                strip.merge()
                length, change = (
                    torch.linalg.vector_norm(q, dim=1).cpu().numpy() for q in (asked, asked - made.float())
                )
                best[part], off[part] = mine, self._off(length, change, longest, changed, queries.shape[1])
            except torch.OutOfMemoryError:
                self._scores //= 2
                if self._scores < len(documents):
                    raise
                continue
            start = part.stop
        return Found(best, off, len(documents))

    def _off(
        self, length: Floats, change: Floats, longest: float, changed: float, dimension: int
    ) -> npt.NDArray[np.float64]:
        """How far scores may lie from exact ones: float64 [q].

        q and x become q' and x', which by Cauchy and Schwarz changes <q, x> by at most |q - q'| |x| + |q'| |x - x'|.
        Sums are off by at most d u |q'| |x'| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), where u is
        float32's; GPUs cut off where they should round when they multiply bfloat16, which is allowed for four times.
        The result is rounded to bfloat16 once more. `length` [q] is |q|, `change` [q] |q - q'|, `longest` the greatest
        |x|, `changed` the greatest |x - x'|.
        """
        q, dq = length.astype(np.float64) * _SLACK, change.astype(np.float64) * _SLACK
        x, dx = longest * _SLACK, changed * _SLACK
        sums = (dimension + 4) * 2.0**-24 * (1 if self._dtype == "float32" else 4)
        last = 0.0 if self._dtype == "float32" else _HALF
        both = (q + dq) * (x + dx) * (1 + sums)
        bound: npt.NDArray[np.float64] = dq * x + (q + dq) * dx + (sums / (1 - sums) + last) * both + 1e-30
        return bound


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
