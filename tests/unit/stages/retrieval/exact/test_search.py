import weakref
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.executor import InProcessExecutor, ItemT, ResultT, Worker
from stages.retrieval.exact import search
from stages.retrieval.exact.scoring import pair_scores
from stages.retrieval.exact.search import exact_search, exact_search_batches, search_above, search_among


def floats(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


def in_blocks(documents: np.ndarray, size: int) -> list[np.ndarray]:
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def naive(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """All pairs scored one by one, the whole list sorted by score falling, then id."""
    ids, scores = [], []
    for query in queries:
        all_scores = [float(pair_scores(query[None], document[None])[0]) for document in documents]
        order = sorted(range(len(documents)), key=lambda i: (-all_scores[i], i))[:k]
        ids.append(order)
        scores.append([all_scores[i] for i in order])
    return ids, scores


def test_best_first_and_ties_by_id() -> None:
    documents = floats([[1, 0], [0, 1], [1, 0], [0.5, 0.5]])
    ids, scores = exact_search(floats([[1, 0], [0, 2]]), [documents], 3)
    assert ids.tolist() == [[0, 2, 3], [1, 3, 0]]
    assert scores.tolist() == [[1, 1, 0.5], [2, 1, 0]]
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_more_ties_at_the_cut_than_the_margin() -> None:
    documents = np.repeat(floats([[0.5, 0], [1, 0]]), [1000, 3], axis=0)
    for size in (7, 1003):
        ids, scores = exact_search(floats([[1, 0]]), in_blocks(documents, size), 5)
        assert ids.tolist() == [[1000, 1001, 1002, 0, 1]]
        assert scores.tolist() == [[1, 1, 1, 0.5, 0.5]]


def test_fewer_documents_than_k() -> None:
    ids, scores = exact_search(floats([[2]]), [floats([[3]])], 200)
    assert (ids.tolist(), scores.tolist()) == ([[0]], [[6]])


def test_no_queries() -> None:
    ids, scores = exact_search(np.empty((0, 2), np.float32), [floats([[1, 0]])], 3)
    assert len(ids) == len(scores) == 0


@settings(max_examples=60)
@given(data=st.data())
def test_the_blocked_search_equals_a_full_sort(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 3))
    value = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1 / 3])
    vectors = st.lists(st.lists(value, min_size=d, max_size=d), min_size=1, max_size=40)
    documents, queries = floats(data.draw(vectors)), floats(data.draw(vectors))[:4]
    k, margin, size = (data.draw(st.integers(1, 12)), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 41)))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    ids, scores = exact_search(queries, in_blocks(documents, size), k, margin, dtype=dtype)
    expected_ids, expected_scores = naive(queries, documents, k)
    assert ids.tolist() == expected_ids
    assert scores.tolist() == expected_scores


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), size=st.integers(20, 301), part=st.integers(1, 40))
def test_near_ties_give_the_same_bits_however_the_work_is_cut(seed: int, size: int, part: int) -> None:
    """Documents that differ in their last bits only: the scan's order is noise, the result is not."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(96).astype(np.float32)
    documents = np.nextafter(base, np.float32(9), where=random.random((300, 96)) < 0.1, out=np.tile(base, (300, 1)))
    queries = random.standard_normal((40, 96)).astype(np.float32)
    ids, scores = exact_search(queries, [documents], 10, margin=2)
    assert ids.tolist() == naive(queries[:1], documents, 10)[0] + ids[1:].tolist()
    cut_ids, cut_scores = zip(
        *(exact_search(queries[i : i + part], in_blocks(documents, size), 10, margin=2) for i in range(0, 40, part)),
        strict=True,
    )
    assert np.concatenate(cut_ids).tobytes() == ids.tobytes()
    assert np.concatenate(cut_scores).tobytes() == scores.tobytes()


def test_ties_after_rounding_are_resolved() -> None:
    """Numbers that bfloat16 holds: 256 + 0.875 is rounded up and 256 + 1 down."""
    documents = np.zeros((2_000, 2), np.float32)
    documents[:, 0], documents[:, 1], documents[1_500, 1] = 256, 0.875, 1
    ids, scores = exact_search(np.ones((1, 2), np.float32), [documents], 1, dtype="bfloat16")
    assert (ids.tolist(), scores.tolist()) == ([[1_500]], [[257]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(20, 301), apart=st.sampled_from([0.0, 1e-3, 1e-2, 1.0]))
def test_scores_that_are_equal_in_bfloat16_are_separated(seed: int, size: int, apart: float) -> None:
    """Documents that differ by less, about as much, and more than what bfloat16 can hold: the same bits as by float32,
    with too small a margin too."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(64)
    documents = (base + apart * random.standard_normal((300, 64))).astype(np.float32)
    queries = random.standard_normal((9, 64)).astype(np.float32)
    expected = exact_search(queries, [documents], 10)
    assert expected[0][:1].tolist() == naive(queries[:1], documents, 10)[0]
    for margin in (None, 0):
        found = exact_search(queries, in_blocks(documents, size), 10, margin, dtype="bfloat16")
        assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]


@settings(max_examples=60)
@given(data=st.data(), tile=st.sampled_from([(1, 1), (2, 3), (1_024, 2_048)]))
def test_the_best_above_a_score_equal_a_full_sort(data: st.DataObject, tile: tuple[int, int]) -> None:
    d = data.draw(st.integers(1, 3))
    value = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1 / 3])
    vectors = st.lists(st.lists(value, min_size=d, max_size=d), min_size=1, max_size=40)
    documents, queries = floats(data.draw(vectors)), floats(data.draw(vectors))[:4]
    k, size = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 41))
    wanted = naive(queries, documents, len(documents))
    # a score that stands there, one between, none and all
    least = [data.draw(st.sampled_from([*scores, 0.4, float("inf"), float("-inf")])) for scores in wanted[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TILE_SHAPE", tile)
        row, ids, scores = search_above(queries, in_blocks(documents, size), k, np.array(least, np.float32))
    expected = [
        (i, place, score)
        for i, (places, all_scores) in enumerate(zip(*wanted, strict=True))
        for place, score in [(p, s) for p, s in zip(places, all_scores, strict=True) if s >= least[i]][:k]
    ]
    assert list(zip(row.tolist(), ids.tolist(), scores.tolist(), strict=True)) == expected


class Counted:
    """Five blocks of documents, and how many of their vectors were alive at most."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.block, range(5))

    def block(self, number: int) -> np.ndarray:
        block = np.full((40, 2), number, np.float32)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(block, self.end)
        return block

    def end(self) -> None:
        self.alive -= 1


def test_a_block_and_the_next_are_held_and_no_more() -> None:
    blocks = Counted()
    for _ in exact_search_batches([floats([[1, 0], [0, 1]])] * 3, blocks, 3):
        assert blocks.alive == 0
    assert blocks.most == 2


def test_the_best_of_some_documents_with_gaps() -> None:
    documents = floats([[1, 0], [0, 1], [1, 0], [0.5, 0.5]])
    some = np.array([[-1, 3, 2], [-1, 1, -1]])
    for size in (1, 3, 4):
        ids, scores = search_among(floats([[1, 0], [0, -2]]), in_blocks(documents, size), some, 2)
        assert ids.tolist() == [[2, 3], [1, -1]]
        assert scores.tolist() == [[1, 0.5], [-2, float("-inf")]]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 41), k=st.integers(1, 40))
def test_the_best_of_all_documents_are_the_exact_ones(seed: int, size: int, k: int) -> None:
    random = np.random.default_rng(seed)
    documents, queries = (random.integers(-1, 2, (n, 2)).astype(np.float32) for n in (40, 5))
    everything = random.permuted(np.tile(np.arange(40), (5, 1)), axis=1)
    ids, scores = search_among(queries, in_blocks(documents, size), everything, k)
    wanted_ids, wanted_scores = exact_search(queries, [documents], k)
    assert ids.tolist() == wanted_ids.tolist()
    assert scores.tobytes() == wanted_scores.tobytes()


class Tf32(InProcessExecutor):
    """Multiplies as NVIDIA's TF32 does: of a float32 only the first 10 bits after the leading one count."""

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        cut = (item._replace(queries=first_bits(item.queries), documents=first_bits(item.documents)) for item in items)  # type: ignore[attr-defined]
        yield from super().map(worker, cut)


def first_bits(vectors: np.ndarray) -> np.ndarray:
    return (vectors.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("documents", [5, 500])
def test_a_scan_beyond_its_error_bound_is_an_error(documents: int) -> None:
    random = np.random.default_rng(0)
    queries, corpus = (random.standard_normal((n, 64)).astype(np.float32) for n in (20, documents))
    with pytest.raises(
        InputError, match=r"NVIDIA_TF32_OVERRIDE=1 makes them less exact: unset it, or .* device = 'cpu'"
    ):
        list(exact_search_batches([queries], [corpus], 3, executor=Tf32()))
    held = first_bits(queries), first_bits(corpus)  # numbers that lose nothing
    [(ids, scores)] = exact_search_batches(held[:1], [held[1]], 3, executor=Tf32())
    assert (ids.tolist(), scores.tolist()) == naive(*held, 3)
