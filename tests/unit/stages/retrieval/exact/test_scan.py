import tracemalloc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from stages.core.errors import InputError
from stages.core.executor import InProcessExecutor, Worker
from stages.retrieval.exact import cpu, scan, topk
from stages.retrieval.exact import gpu as gpu_scan
from stages.retrieval.exact.gpu import TorchScanner
from stages.retrieval.exact.packed_hits import NO_HIT, pack_hits
from stages.retrieval.exact.scan import ScanResult, scan_batches
from stages.retrieval.exact.scoring import pair_scores
from stages.retrieval.exact.topk import BlockTopK


def in_blocks(documents: np.ndarray, size: int) -> list[np.ndarray]:
    return [documents[start : start + size] for start in range(0, len(documents), size)]


class ByTorch(InProcessExecutor):
    """The GPU's worker, on the CPU's torch."""

    def map(self, worker: Worker[Any, Any], items: Iterable[Any]) -> Iterator[Any]:
        made: partial[Any] = worker.factory  # type: ignore[assignment]
        assert (made.func, made.args[1], worker.device) == (TorchScanner, "cuda", "cuda")
        return super().map(Worker(partial(TorchScanner, made.args[0], "cpu", made.args[2]), "cpu"), items)


def right(found: ScanResult, documents: np.ndarray, width: int) -> None:
    """Each id is there once with its score, and no document that is left out scores more than one that is there."""
    every = found.queries @ documents.T
    assert found.ids.shape == (len(found.queries), min(width, len(documents)))
    assert all(len(set(row)) == len(row) for row in found.ids.tolist())
    assert np.array_equal(np.take_along_axis(every, found.ids, 1), found.scores)
    np.put_along_axis(every, found.ids, -np.inf, 1)
    assert (every.max(axis=1) <= found.scores.min(axis=1)).all()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    documents=st.integers(1, 90),
    size=st.integers(1, 90),
    width=st.integers(1, 20),
    tile=st.sampled_from([(1, 1), (2, 3), (4, 8), (1_024, 1_024)]),
    rising=st.booleans(),
    gpu=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_scan_finds_the_best_with_any_block_size(
    seed: int,
    queries: list[int],
    documents: int,
    size: int,
    width: int,
    tile: tuple[int, int],
    rising: bool,
    gpu: bool,
    dtype: str,
) -> None:
    """Whole numbers of 8 bits, so that all is exact and ties abound; also where each document is better than all before
    it."""
    random = np.random.default_rng(seed)
    corpus = random.integers(-2, 3, (documents, 3)).astype(np.float32)
    if rising:
        corpus[:, 0] = np.arange(documents)
    parts = [random.integers(-2, 3, (n, 3)).astype(np.float32) for n in queries]
    engine, device = (ByTorch(), "cuda") if gpu else (InProcessExecutor(), "cpu")
    with pytest.MonkeyPatch.context() as given:
        for module in (scan, cpu):
            given.setattr(module, "TILE_SHAPE", tile)
        given.setattr(cpu, "_MIN_QUERIES_PER_THREAD", 2)
        given.setattr(gpu_scan, "_MAX_GPU_SCORES", tile[0] * size)
        given.setattr(topk, "_MERGE_ROWS", 2)
        found = list(scan_batches(iter(parts), in_blocks(corpus, size), width, engine, device, dtype))
    assert [len(one.queries) for one in found] == queries
    for one in found:
        right(one, corpus, width)
        assert (one.error_bound > 0).all()


def test_a_scan_with_its_real_sizes() -> None:
    """Several strips, tiles and blocks, some of them not full; many ties."""
    random = np.random.default_rng(1)
    corpus, asked = (random.integers(-3, 4, (n, 8)).astype(np.float32) for n in (11_111, 1_500))
    corpus[-2_000:, 1] += 1
    (found,) = scan_batches([asked], in_blocks(corpus, 6_000), 40, InProcessExecutor())
    right(found, corpus, 40)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", [InProcessExecutor(), ByTorch()])
def test_score_errors_are_within_the_error_bound(dtype: str, engine: InProcessExecutor) -> None:
    """Vectors of any length, some made to be rounded as far as can be, all in one direction; and of nothing."""
    random = np.random.default_rng(5)
    corpus, asked = (random.standard_normal((n, 48)).astype(np.float32) for n in (300, 60))
    for vectors in (corpus, asked):
        vectors *= np.exp(random.uniform(-8, 8, (len(vectors), 1))).astype(np.float32)
        worst = 1 + (2.0**-8 + 2.0**-20) * random.integers(0, 2, (20, 48))  # above half a step of what bfloat16 has
        vectors[:20] = worst * 2.0 ** random.integers(-3, 4, (20, 1))
        vectors[20] = 0
    device = "cuda" if isinstance(engine, ByTorch) else "cpu"
    (found,) = scan_batches([asked], in_blocks(corpus, 128), 300, engine, device, dtype)
    exact = pair_scores(np.repeat(asked, 300, axis=0), corpus[found.ids.ravel()]).reshape(60, 300)
    off = np.abs(found.scores.astype(np.float64) - exact)
    assert (off <= found.error_bound[:, None]).all()
    lengths = np.linalg.norm(asked, axis=1) * np.linalg.norm(corpus, axis=1).max()
    assert (found.error_bound <= lengths * (1e-4 if dtype == "float32" else 2.0**-6) + 1e-29).all()
    if dtype == "bfloat16":  # that it is needed: rounding all in one direction comes near it
        assert (off[:20] / found.error_bound[:20, None]).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("small", [1e-15, 1e-22, 1e-25, 1e-38])
@pytest.mark.parametrize("engine", [InProcessExecutor(), ByTorch()])
def test_the_error_bound_holds_if_squares_underflow(engine: InProcessExecutor, dtype: str, small: float) -> None:
    device = "cuda" if isinstance(engine, ByTorch) else "cpu"
    random = np.random.default_rng(6)
    corpus, asked = (random.standard_normal((n, 32)).astype(np.float32) for n in (200, 50))
    for queries, documents in ((asked * small, corpus), (asked * 1e17, corpus * small)):
        queries, documents = queries.astype(np.float32), documents.astype(np.float32)
        (found,) = scan_batches([queries], [documents], 200, engine, device, dtype)
        exact = pair_scores(np.repeat(queries, 200, axis=0), documents[found.ids.ravel()]).reshape(50, 200)
        assert (np.abs(found.scores.astype(np.float64) - exact) <= found.error_bound[:, None]).all()


def test_a_whole_unit_of_the_last_place_is_reckoned_with() -> None:
    """All vectors are numbers of bfloat16, so that only the result is rounded: 256.875 to 257 and 257 to 256."""
    corpus = np.zeros((2_000, 2), np.float32)
    corpus[:, 0], corpus[:, 1], corpus[1_500, 1] = 256, 0.875, 1
    (found,) = scan_batches([np.ones((1, 2), np.float32)], [corpus], 5, InProcessExecutor(), "cpu", "bfloat16")
    assert found.error_bound[0] > 1


def test_few_queries_that_everything_passes_take_no_more_room_than_others() -> None:
    """For each of them a later document is always better, or all documents are worth the same."""
    random = np.random.default_rng(3)
    corpus = random.standard_normal((100_000, 8)).astype(np.float32)
    corpus[:, 0] = np.arange(100_000)
    asked = random.standard_normal((600, 8)).astype(np.float32)
    asked[:, 0] = 0
    usual = most_held(asked, corpus)
    asked[100] = np.eye(8)[0]
    asked[400] = 0
    assert most_held(asked, corpus) < 2 * usual


def most_held(asked: np.ndarray, corpus: np.ndarray) -> int:
    """Bytes that numpy held at most."""
    tracemalloc.start()
    list(scan_batches([asked], [corpus], 100, InProcessExecutor()))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_parallel_scans_leave_the_threads_of_blas_unchanged() -> None:
    random = np.random.default_rng(4)
    asked, corpus = (random.standard_normal((n, 64)).astype(np.float32) for n in (600, 9_000))
    before = [pool["num_threads"] for pool in threadpool_info()]
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: list(scan_batches([asked], [corpus], 5, InProcessExecutor())), range(8)):
            assert len(found) == 1
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_a_later_block_must_exceed_the_kth_score() -> None:
    part = scan._QueryBatchScan(2, 0.0, np.eye(2, dtype=np.float32))
    documents = np.array([[1, 4], [2, 5], [3, 6]], np.float32)
    assert part.make_task(documents).thresholds.tolist() == [-np.inf, -np.inf]
    best = np.array([pack_hits(np.array([1, 2]), np.array(found, np.float32)) for found in ([2, 3], [5, 6])])
    part.add_block(BlockTopK(best, np.array([0.1, 0.4]), 3))
    assert part.make_task(documents).thresholds.tolist() == [2, 5]
    more = np.array([pack_hits(np.array([0]), np.array([2.5], np.float32)), [NO_HIT]])
    part.add_block(BlockTopK(np.concatenate([more, np.full((2, 1), NO_HIT)], axis=1), np.array([0.2, 0.3]), 1))
    found = part.finish()
    assert (found.ids.tolist(), found.scores.tolist()) == ([[2, 3], [2, 1]], [[3, 2.5], [6, 5]])
    assert found.error_bound.tolist() == [0.2, 0.4]


def test_a_gpu_whose_memory_does_not_hold_the_scores_gets_fewer() -> None:
    random = np.random.default_rng(2)
    corpus, asked = (random.integers(-3, 4, (n, 4)).astype(np.float32) for n in (50, 40))
    seen, above, fits = [], gpu_scan._TorchTile.select_above, [6]

    def short(tile: Any, enough: np.ndarray) -> Any:
        seen.append(len(enough))
        if len(enough) > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return above(tile, enough)

    with (
        patch.object(gpu_scan._TorchTile, "select_above", short),
        patch.object(gpu_scan, "_MAX_GPU_SCORES", 20 * 50),
    ):
        (found,) = scan_batches([asked], [corpus], 7, ByTorch(), "cuda")
        assert seen == [20, 10, 5, 5, 5, 5, 5, 5, 5, 5]
        right(found, corpus, 7)
        fits[0] = 0
        with pytest.raises(InputError, match="does not hold 50 vectors"):
            list(scan_batches([asked], [corpus], 7, ByTorch(), "cuda"))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        ("float32", MemoryError("Unable to allocate 48.0 MiB")),
        ("bfloat16", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 192000000 bytes")),
        ("bfloat16", RuntimeError("could not create a primitive")),
    ],
)
def test_a_machine_whose_memory_does_not_hold_a_block_is_an_input_error(dtype: str, error: Exception) -> None:
    corpus, asked = np.ones((50, 4), np.float32), np.ones((40, 4), np.float32)
    with (
        patch.object(topk.TopKBuffer, "update", side_effect=error),
        pytest.raises(InputError, match=r"memory of cpu does not hold 50 vectors and their scores\. Free it\.$"),
    ):
        list(scan_batches([asked], [corpus], 7, InProcessExecutor(), "cpu", dtype))


def test_results_of_an_aborted_part_are_not_counted_twice() -> None:
    """Everything passes, so that it is merged at once; then the memory ends, after the first queries."""
    corpus, asked = np.arange(1, 201, dtype=np.float32)[:, None], np.ones((130, 1), np.float32)
    best, failed = gpu_scan._TorchTile.select_top_k, []

    def short(tile: Any, rows: slice, width: int) -> Any:
        if rows.start == 64 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return best(tile, rows, width)

    with patch.object(gpu_scan._TorchTile, "select_top_k", short):
        (found,) = scan_batches([asked], [corpus], 7, ByTorch(), "cuda")
    assert failed == [True]
    right(found, corpus, 7)


def test_products_and_sums_are_float32_under_any_process_settings() -> None:
    """TF32, and sums in bfloat16, are off by more than exact search reckons with."""
    seen, above = [], gpu_scan._TorchTile.select_above
    matmul = torch.backends.cuda.matmul

    def look(tile: Any, enough: np.ndarray) -> Any:
        seen.append((torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction))
        return above(tile, enough)

    torch.set_float32_matmul_precision("high")
    matmul.allow_bf16_reduced_precision_reduction = True
    try:
        with patch.object(gpu_scan._TorchTile, "select_above", look):
            list(scan_batches([np.eye(3, dtype=np.float32)], [np.eye(3, dtype=np.float32)], 2, ByTorch(), "cuda"))
        assert seen == [("highest", False)]
        assert (torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction) == ("high", True)
    finally:
        torch.set_float32_matmul_precision("highest")
