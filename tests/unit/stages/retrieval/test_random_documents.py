"""Random documents: the same for a query whatever comes or goes around it."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.hashing import stable_hash
from stages.retrieval.random_documents import RandomDocuments

ids = st.lists(st.text("abcxyz", min_size=1, max_size=4), min_size=1, max_size=12, unique=True).map(sorted)


def lists(queries: list[str], documents: list[str], end: int, seed: int = 0) -> dict[str, list[str]]:
    ring = RandomDocuments(seed, pl.Series(queries, dtype=pl.String), pl.Series(documents, dtype=pl.String))
    found = ring.search(np.arange(len(queries)), end)
    drawn: dict[str, list[str]] = {query: [] for query in queries}
    for query, document, rank in zip(found.query_index, found.document_index, found.rank, strict=True):
        drawn[queries[query]].append(documents[document])
        assert len(drawn[queries[query]]) == rank
    assert found.score.tolist() == [0.0] * len(found.query_index)
    return drawn


def naive(query: str, documents: list[str], end: int, seed: int) -> list[str]:
    """Documents by how far they stand after the query on a circle of 64 bits."""
    place = stable_hash(seed, "random source query", query)
    after = {one: (stable_hash(seed, "random source document", one) - place) % 2**64 for one in documents}
    return sorted(documents, key=lambda one: (after[one], one))[:end]


@given(ids, ids, st.integers(1, 15), st.integers(0, 5))
def test_a_query_takes_the_documents_after_its_place(
    queries: list[str], documents: list[str], end: int, seed: int
) -> None:
    expected = {query: naive(query, documents, end, seed) for query in queries}
    assert lists(queries, documents, end, seed) == expected


@given(ids, ids, st.integers(1, 6), st.data())
def test_a_document_that_goes_changes_only_its_lists_by_one_place(
    queries: list[str], documents: list[str], end: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(documents))
    before, after = lists(queries, documents, end), lists(queries, [d for d in documents if d != gone], end)
    for query in queries:
        left = [document for document in before[query] if document != gone]
        assert after[query][: len(left)] == left
        assert len(after[query]) - len(left) <= (gone in before[query])


def test_queries_in_parts_and_out_of_order() -> None:
    ring = RandomDocuments(0, pl.Series(["a", "b", "c"]), pl.Series([f"d{n}" for n in range(9)]))
    whole = ring.search(np.arange(3), 4).document_index.reshape(3, 4)
    for places in ([2], [1, 2], [2, 0]):
        assert ring.search(np.array(places), 4).document_index.reshape(-1, 4).tolist() == whole[places].tolist()


def test_a_query_with_the_id_of_a_document_does_not_start_at_it() -> None:
    names = [f"n{n:03}" for n in range(200)]
    same = sum(drawn == [query] for query, drawn in lists(names, names, 1).items())
    assert same < 10


def test_another_seed_draws_others() -> None:
    documents = [f"d{n:02}" for n in range(50)]
    assert lists(["q"], documents, 5, seed=1) != lists(["q"], documents, 5, seed=2)


def test_all_documents_are_drawn_about_alike() -> None:
    documents = [f"d{n:03}" for n in range(100)]
    drawn = [one for some in lists([f"q{n:04}" for n in range(2000)], documents, 20).values() for one in some]
    counts = np.array([drawn.count(one) for one in documents])
    assert counts.sum() == 40_000
    assert counts.std() / counts.mean() == pytest.approx(20**-0.5, rel=0.5)  # what 20 gaps between hashes give
    assert counts.min() > 100


def test_no_query_and_no_document() -> None:
    assert lists([], ["a"], 3) == {}
    assert lists(["q"], [], 3) == {"q": []}
