import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.engine import InProcess
from stages.retrieval import sweep
from stages.retrieval.lists import NONE, entries
from stages.retrieval.sweep import Swept, sweeps


def in_blocks(documents: np.ndarray, size: int) -> list[np.ndarray]:
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def right(found: Swept, documents: np.ndarray, width: int) -> None:
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
    start=st.sampled_from([1, 5, 4_096]),
    rising=st.booleans(),
)
def test_a_sweep_finds_the_best_however_it_is_cut(
    seed: int,
    queries: list[int],
    documents: int,
    size: int,
    width: int,
    tile: tuple[int, int],
    start: int,
    rising: bool,
) -> None:
    """Whole numbers, so that float32 is exact and ties abound; also where each document is better than all before."""
    random = np.random.default_rng(seed)
    corpus = random.integers(-2, 3, (documents, 3)).astype(np.float32)
    if rising:
        corpus[:, 0] = np.arange(documents)
    parts = [random.integers(-2, 3, (n, 3)).astype(np.float32) for n in queries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "TILE", tile)
        patch.setattr(sweep, "_SEED", start)
        patch.setattr(sweep, "_LEAST_ROWS", 2)
        found = list(sweeps(iter(parts), in_blocks(corpus, size), width, InProcess()))
    assert [len(one.queries) for one in found] == queries
    for one in found:
        right(one, corpus, width)
        assert one.longest == pytest.approx(np.linalg.norm(corpus, axis=1).max())


def test_a_sweep_at_its_real_sizes() -> None:
    """Several strips, tiles and blocks, some of them not full; scores that tie in places that FAISS and tiles find."""
    random = np.random.default_rng(1)
    corpus, asked = (random.integers(-3, 4, (n, 8)).astype(np.float32) for n in (11_111, 1_500))
    corpus[-2_000:, 1] += 1
    (found,) = sweeps([asked], in_blocks(corpus, 6_000), 40, InProcess())
    right(found, corpus, 40)


def test_a_later_block_is_only_asked_for_what_beats_the_ones_before() -> None:
    part = sweep._Part(2, np.eye(2, dtype=np.float32))
    documents = np.array([[1, 4], [2, 5], [3, 6]], np.float32)
    assert part.item(documents).least.tolist() == [-np.inf, -np.inf]
    best = np.array([entries(np.array([1, 2]), np.array(found, np.float32)) for found in ([2, 3], [5, 6])])
    part.add(sweep._Found(best, 6.7, 3))
    assert part.item(documents).least.tolist() == [2, 5]
    more = np.array([entries(np.array([0]), np.array([2.5], np.float32)), [NONE]])
    part.add(sweep._Found(np.concatenate([more, np.full((2, 1), NONE)], axis=1), 1.0, 1))
    found = part.swept()
    assert (found.ids.tolist(), found.scores.tolist()) == ([[2, 3], [2, 1]], [[3, 2.5], [6, 5]])
    assert found.longest == 6.7
