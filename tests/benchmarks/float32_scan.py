"""The float32 scan on a CPU by `CpuScanner` and by faiss.knn: `exact_search` with each, in turn, in one process.

"faiss" calls faiss.knn once a block, "faiss, a thread a slice" once for the queries of each thread, which multiplies
alone as in `CpuScanner`. Only the scanner differs, so the rescoring must give the same bytes.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tests.benchmarks.clock import Clock
from tests.benchmarks.search import BLOCK


class FaissScanner:
    """A worker with faiss.knn, which scans a block anew for its k best: it takes no scores that must be beaten."""

    def __init__(self, width: int, dtype: str, slices: bool = False) -> None:
        import faiss
        from threadpoolctl import ThreadpoolController

        faiss.cvar.distance_compute_blas_threshold = 1  # few queries are several times slower without BLAS
        self._width, self._slices, self._controller = width, slices, ThreadpoolController()

    def __call__(self, task: Any) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        import faiss
        import numpy as np

        from stages.retrieval.exact.packed_hits import NO_HIT, pack_hits
        from stages.retrieval.exact.scoring import float32_error_bound, max_norm
        from stages.retrieval.exact.topk import BlockTopK

        queries, documents, _ = task
        hits = np.full((len(queries), self._width), NO_HIT)
        k, threads = min(self._width, len(documents)), faiss.omp_get_max_threads()
        rows = min(max(-(-len(queries) // threads), 256), 4_096) if self._slices else len(queries)
        slices = [slice(start, start + rows) for start in range(0, len(queries), rows)]
        threads_each = max(1, threads // len(slices))

        def scan(part: slice) -> None:
            scores, ids = faiss.knn(queries[part], documents, k, metric=faiss.METRIC_INNER_PRODUCT)
            hits[part, :k] = pack_hits(ids, scores)

        with (
            self._controller.limit(limits=threads_each, user_api="blas"),
            ThreadPoolExecutor(threads, "", faiss.omp_set_num_threads, (threads_each,)) as pool,
        ):
            list(pool.map(scan, slices))
            norms = pool.map(max_norm, (documents[start : start + 1_024] for start in range(0, len(documents), 1_024)))
            bound = float32_error_bound(queries, max(norms, default=0.0))
        return [BlockTopK(hits, bound, len(documents))]


def compare(n_queries: int, n_documents: int, dimension: int, k: int, turns: int) -> dict[str, Any]:
    """Each turn's seconds and processor seconds of each side, and the ratios of their medians to ours."""
    from functools import partial

    import numpy as np

    from stages.retrieval.exact.cpu import CpuScanner
    from stages.retrieval.exact.search import exact_search

    random = np.random.default_rng(0)
    queries, documents = (random.standard_normal((n, dimension), np.float32) for n in (n_queries, n_documents))
    for vectors in (queries, documents):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    blocks = [documents[start : start + BLOCK] for start in range(0, n_documents, BLOCK)]
    sides: dict[str, Callable[[int, str], Any]] = {
        "ours": CpuScanner,
        "faiss": FaissScanner,
        "faiss, a thread a slice": partial(FaissScanner, slices=True),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for turn in range(turns):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            with patch("stages.retrieval.exact.scan.CpuScanner", sides[name]):
                exact_search(queries[:300], blocks[:1], k)  # loads what is loaded once
                clock = Clock()
                found[name] = exact_search(queries, blocks, k)
            took[name].append((clock.result()["seconds"], clock.result()["cpu_seconds"]))
    medians = {name: np.median(times, axis=0) for name, times in took.items()}
    return {
        "seconds and processor seconds": {name: np.round(times, 2).tolist() for name, times in took.items()},
        "times ours": {name: np.round(times / medians["ours"], 2).tolist() for name, times in medians.items()},
        "same bytes": all(
            np.array_equal(a, b) for other in found.values() for a, b in zip(other, found["ours"], strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8_000)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    sizes = options.queries, options.documents, options.dimension, options.k, options.turns
    print(json.dumps(compare(*sizes), indent=1))


if __name__ == "__main__":
    main()
