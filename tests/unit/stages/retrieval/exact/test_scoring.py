from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.retrieval.exact import scoring
from stages.retrieval.exact.scoring import max_pair_scores, pair_scores, pair_scores_at


def test_a_pair_scores_the_same_alone_and_in_company() -> None:
    random = np.random.default_rng(0)
    for d in (1, 7, 384, 1000):
        a, b = random.standard_normal((2, 700, d)).astype(np.float32)
        together = pair_scores(a, b)
        assert together.tobytes() == b"".join(
            pair_scores(x[None], y[None]).tobytes() for x, y in zip(a, b, strict=True)
        )
        assert together.tobytes() == pair_scores(np.asfortranarray(a), b).tobytes()
        assert np.allclose(together, [np.dot(x.astype(float), y.astype(float)) for x, y in zip(a, b, strict=True)])


def test_no_score_is_minus_zero() -> None:
    """-1e-50 is rounded to -0 in float32, and is worth as much as 0."""
    asked, found = np.array([[1e-25], [1.0]], np.float32), np.array([[-1e-25], [-0.0]], np.float32)
    assert pair_scores(asked, found).tobytes() == np.zeros(2, np.float32).tobytes()
    assert pair_scores_at(asked, found, np.array([0, 1]), np.array([0, 1])).tobytes() == bytes(8)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 8),
    documents=st.integers(1, 12),
    runs=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), min_size=1, max_size=30),
    apart=st.sampled_from([0.0, 1e-8, 1e-7, 1.0]),
)
def test_the_highest_of_each_run_is_that_of_all_its_pairs(
    seed: int, queries: int, documents: int, runs: list[tuple[int, int]], apart: float
) -> None:
    """Documents lie so near to one another that a float32 product can't order them."""
    random = np.random.default_rng(seed)
    asked = random.standard_normal((queries, 48)).astype(np.float32)
    found = (random.standard_normal(48) + apart * random.standard_normal((documents, 48))).astype(np.float32)
    query = np.concatenate([np.full(n, q % queries) for q, n in runs])
    document = random.integers(0, documents, len(query))
    run = np.repeat(np.arange(len(runs)) * 3, [n for _, n in runs])
    every = pair_scores_at(asked, found, query, document)
    expected = [every[run == number].max() for number in np.unique(run)]
    for sparse in (0, 10**9):  # without the product, and with it
        with patch.object(scoring, "_MAX_PRODUCTS_PER_PAIR", sparse):
            assert max_pair_scores(asked, found, query, document, run).tolist() == expected
