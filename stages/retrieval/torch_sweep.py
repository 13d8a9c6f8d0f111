"""The sweep by torch: on a GPU, and in bfloat16 where a CPU or GPU multiplies faster in it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import InputError
from stages.memory import ran_out
from stages.retrieval.lists import NONE
from stages.retrieval.sources import Ids
from stages.retrieval.strip import MANY, TILE, Found, Item, Strip
from stages.retrieval.vectors import Floats

Doubles = npt.NDArray[np.float64]

_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB in float32."""
_HALF = 2.0**-8
"""The most, relatively, that rounding to bfloat16 changes a number: half of what lies between 1 and the next one."""
_SMALLEST = 2.0**-126
"""What is smaller some processors take for 0."""


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
        except RuntimeError as error:
            if not ran_out(error):
                raise
            raise InputError(
                f"the memory of {self._device} does not hold {len(item.documents):,} vectors and their scores. Free "
                "it, lower block under [mine], or search by numpy on the CPU: search_device = 'cpu' and search_dtype = "
                "'float32'."
            ) from error
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
        on_cpu = self._device == "cpu"
        across = TILE[1] if on_cpu else len(documents)
        start = 0
        while start < len(queries):
            rows = TILE[0] if on_cpu else max(1, self._scores // max(1, len(documents)))
            part = slice(start, start + rows)
            try:
                asked = torch.tensor(queries[part], device=self._device)
                made = asked.to(there.dtype)
                mine = np.full((len(asked), self._width), NONE)  # what a part has that did not end is not kept
                strip = Strip(mine, least[part])
                for first in range(0, len(documents), across):
                    strip.show(first, _TorchTile(made @ there[first : first + across].T))
                strip.merge()
                length, change = _lengths(asked), _lengths(asked - made.float())
                best[part], off[part] = mine, self._off(length, change, longest, changed, queries.shape[1])
            except RuntimeError as error:
                self._scores //= 2
                if not ran_out(error) or on_cpu or self._scores < len(documents):
                    raise
                continue
            start = part.stop
        return Found(best, off, len(documents))

    def _off(self, q: Doubles, dq: Doubles, x: float, dx: float, dimension: int) -> Doubles:
        """How far scores may lie from exact ones: float64 [q].

        q and x become q' and x', which by Cauchy and Schwarz changes <q, x> by at most |q - q'| |x| + |q'| |x - x'|.
        Sums are off by at most d u |q'| |x'| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), where u is
        float32's; GPUs cut off where they should round when they multiply bfloat16, which is allowed for four times.
        The result is rounded to bfloat16 once more. What is very small may be taken for 0 anywhere. `q` [q] is |q|,
        `dq` [q] |q - q'|, `x` the greatest |x|, `dx` the greatest |x - x'|.
        """
        rough = self._dtype != "float32"
        sums = (dimension + 4) * 2.0**-24 * (4 if rough else 1)
        last = _HALF if rough else 0.0
        lost = 2 * dimension**0.5 * _SMALLEST
        q, x = q + dq + lost, x + dx + lost
        bound: Doubles = dq * x + q * dx + (sums / (1 - sums) + last) * (1 + sums) * q * x
        return np.asarray(bound + lost * (q + x) + dimension * _SMALLEST)


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
