"""Scores on a CPU in bfloat16, several times as fast as float32 if the CPU has instructions for it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from stages.core.arrays import Floats, Ints
from stages.retrieval.exact.scoring import BFLOAT16_ROUNDING_UNITS, inner_product_error_bound, vector_norms
from stages.retrieval.exact.topk import find_sparse_hits

Bfloat16Bits = npt.NDArray[np.int16]
"""The bits of numbers in bfloat16: the upper half of float32."""


class Bfloat16Scorer:
    """The scores of some queries with a block of documents, in bfloat16 by torch (oneDNN), with sums in float32."""

    def __init__(self, queries: Floats, documents: Floats, tile_slices: list[slice], pool: ThreadPoolExecutor) -> None:
        import torch

        self._tile_slices = tile_slices
        self._documents = torch.empty(documents.shape, dtype=torch.bfloat16)
        self._queries = torch.empty(queries.shape, dtype=torch.bfloat16)
        query_norms, query_errors = np.empty((2, len(queries)))

        def convert_documents(part: slice) -> tuple[float, float]:
            self._documents[part] = torch.tensor(documents[part])
            errors = documents[part] - self._documents[part].float().numpy()
            return float(vector_norms(documents[part]).max()), float(vector_norms(errors).max())

        def convert_queries(part: slice) -> None:
            self._queries[part] = torch.tensor(queries[part])
            query_norms[part], query_errors[part] = (
                vector_norms(queries[part]),
                vector_norms(queries[part] - self._queries[part].float().numpy()),
            )

        query_slices = [slice(start, start + 1_024) for start in range(0, len(queries), 1_024)]
        for _ in pool.map(convert_queries, query_slices):
            pass
        max_document_norm, max_document_error = np.max([(0.0, 0.0), *pool.map(convert_documents, tile_slices)], axis=0)
        self.error_bound = inner_product_error_bound(
            query_norms, max_document_norm, queries.shape[1], query_errors, max_document_error, BFLOAT16_ROUNDING_UNITS
        )
        """Largest difference of each query's scores from `pair_scores`, before the rounding to bfloat16: [q]."""

    def score_tiles(self, rows: slice) -> Iterator[tuple[int, "_Bfloat16Tile"]]:
        """The scores of some queries, tile by tile, with the position of its first document."""
        import torch

        queries = self._queries[rows]
        scores, passes = torch.empty((len(queries), 0), dtype=torch.bfloat16), np.empty((len(queries), 0), np.bool_)
        for part in self._tile_slices:
            documents = self._documents[part]
            if scores.shape[1] != len(documents):
                scores = torch.empty((len(queries), len(documents)), dtype=torch.bfloat16)
                passes = np.empty(tuple(scores.shape), np.bool_)
            with torch.inference_mode():
                torch.mm(queries, documents.T, out=scores)
            yield part.start, _Bfloat16Tile(scores.view(torch.int16).numpy(), passes)


class _Bfloat16Tile:
    """Scores [q, d] in bfloat16, and a buffer for comparisons."""

    def __init__(self, scores: Bfloat16Bits, passes: npt.NDArray[np.bool_]) -> None:
        self._scores, self._passes = scores, passes

    def select_above(self, thresholds: Floats) -> tuple[Ints, Ints, Floats] | None:
        # The thresholds are bfloat16 numbers, so the conversion is exact. The bits of positive numbers have the order
        # of the numbers, and those of negative numbers are below 0.
        score_bits, threshold_bits = self._scores, (thresholds.view(np.int32) >> 16).astype(np.int16)
        if threshold_bits.min() < 0:
            score_bits, threshold_bits = _sortable_bits(score_bits), _sortable_bits(threshold_bits)
        np.greater(score_bits, threshold_bits[:, None], out=self._passes)
        indices = find_sparse_hits(self._passes)
        if indices is None:
            return None
        row, column = np.divmod(indices, self._scores.shape[1])
        return row, column, _to_float32(self._scores.ravel()[indices])

    def select_top_k(self, rows: slice, k: int) -> tuple[Ints, Floats]:
        return np.arange(self._scores.shape[1]), _to_float32(self._scores[rows])


def _sortable_bits(bits: Bfloat16Bits) -> Bfloat16Bits:
    """Integers with the order of the numbers that have these bits."""
    return bits ^ ((bits >> 15) & np.int16(0x7FFF))


def _to_float32(bits: Bfloat16Bits) -> Floats:
    return (bits.astype(np.int32) << 16).view(np.float32)
