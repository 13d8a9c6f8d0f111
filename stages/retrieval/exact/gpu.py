"""The scan on a GPU, with torch."""

from typing import Any

import numpy as np

from stages.core.arrays import Doubles, Floats, Ints
from stages.core.memory import is_oom
from stages.retrieval.exact.packed_hits import NO_HIT
from stages.retrieval.exact.scoring import BFLOAT16_ROUNDING_UNITS, inner_product_error_bound
from stages.retrieval.exact.topk import MAX_HIT_SHARE, BlockTopK, ScanTask, TopKBuffer, translate_oom_errors

_MAX_GPU_SCORES = 2**26
"""Scores that a GPU computes at once: 256 MB in float32."""


class TorchScanner:
    """A worker that multiplies with torch, in float32 (never TF32) or in bfloat16 with sums in float32.

    The largest difference of its scores from those of `pair_scores`, before the last rounding, is computed for every
    block (`BlockTopK.error_bound`). If the device's memory is too small, the number of scores at once is halved from
    then on. Raises `InputError` if the memory is too small for the scores of one query.
    """

    def __init__(self, width: int, device: str, dtype: str) -> None:
        self._width, self._device, self._dtype, self._max_scores = width, device, dtype, _MAX_GPU_SCORES

    def __call__(self, task: ScanTask) -> list[BlockTopK]:
        import torch

        matmul = torch.backends.cuda.matmul
        before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
        torch.set_float32_matmul_precision("highest")
        matmul.allow_bf16_reduced_precision_reduction = False
        try:
            with translate_oom_errors(task, self._device):
                return [self._scan_block(task)]
        finally:
            torch.set_float32_matmul_precision(before[0])
            matmul.allow_bf16_reduced_precision_reduction = before[1]

    def _scan_block(self, task: ScanTask) -> BlockTopK:
        import torch

        queries, documents, thresholds = task
        documents_float32 = torch.tensor(documents, device=self._device)
        device_documents = documents_float32.to(getattr(torch, self._dtype))
        max_document_norm, max_document_error = (
            float(_tensor_norms(one).max(initial=0))
            for one in (documents_float32, documents_float32 - device_documents.float())
        )
        del documents_float32
        hits, error_bound = np.full((len(queries), self._width), NO_HIT), np.empty(len(queries))
        rounding_units = 1 if self._dtype == "float32" else BFLOAT16_ROUNDING_UNITS
        start = 0
        while start < len(queries):
            rows = max(1, self._max_scores // max(1, len(documents)))
            part = slice(start, start + rows)
            try:
                queries_float32 = torch.tensor(queries[part], device=self._device)
                device_queries = queries_float32.to(device_documents.dtype)
                # copied to `hits` at the end, so that a part that fails leaves nothing
                part_hits = np.full((len(queries_float32), self._width), NO_HIT)
                buffer = TopKBuffer(part_hits, thresholds[part])
                buffer.update(0, _TorchTile(device_queries @ device_documents.T))
                buffer.flush()
                query_norms, query_errors = (
                    _tensor_norms(queries_float32),
                    _tensor_norms(queries_float32 - device_queries.float()),
                )
                hits[part] = part_hits
                error_bound[part] = inner_product_error_bound(
                    query_norms, max_document_norm, queries.shape[1], query_errors, max_document_error, rounding_units
                )
            except RuntimeError as error:
                self._max_scores //= 2
                if not is_oom(error) or self._max_scores < len(documents):
                    raise
                continue
            start = part.stop
        return BlockTopK(hits, error_bound, len(documents))


def _tensor_norms(vectors: Any) -> Doubles:
    """Row norms of a tensor [n, d] in float64, which does not underflow: [n]."""
    import torch

    norms: Doubles = torch.linalg.vector_norm(vectors.double(), dim=1).cpu().numpy()
    return norms


class _TorchTile:
    """Scores [q, d] as a tensor."""

    def __init__(self, scores: Any) -> None:
        self._scores = scores

    def select_above(self, thresholds: Floats) -> tuple[Ints, Ints, Floats] | None:
        import torch

        # the thresholds are scores of the same dtype, so the conversion is exact
        passes = self._scores > torch.tensor(thresholds, device=self._scores.device).to(self._scores.dtype)[:, None]
        if int(passes.count_nonzero()) > MAX_HIT_SHARE * passes.numel():
            return None
        row, column = passes.nonzero(as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy(), self._scores[row, column].float().cpu().numpy()

    def select_top_k(self, rows: slice, k: int) -> tuple[Ints, Floats]:
        import torch

        scores = self._scores[rows].float()
        scores, ids = torch.topk(scores, min(k, scores.shape[1]), sorted=False)
        return ids.cpu().numpy(), scores.cpu().numpy()
