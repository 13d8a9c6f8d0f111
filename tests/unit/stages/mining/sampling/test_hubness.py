"""The hub cap: which queries keep a document, in any order of queries, and no document above the cap."""

import numpy as np
import polars as pl
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.mining.sampling import hubness

SCHEMA = {"query": pl.UInt32, "document": pl.UInt32, "score": pl.Float32}


def make_proposals(lists: dict[int, list[tuple[int, float]]], n: int) -> hubness.ProposalFunction:
    """Each query proposes its first `n` documents that are not rejected; `lists`: query -> [(document, score)]."""

    def propose(hub_cap: hubness.HubCap, query_numbers: pl.Series | None) -> pl.DataFrame:
        rows = []
        for query, documents in lists.items():
            if query_numbers is None or query in query_numbers:
                frame = pl.DataFrame([(query, d, s) for d, s in documents], schema=SCHEMA, orient="row")
                rows += frame.filter(~pl.Series(hub_cap.is_rejected(frame))).head(n).rows()
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    return propose


def apply_cap(
    lists: dict[int, list[tuple[int, float]]], n: int, max_queries: int, seed: int = 0
) -> tuple[dict, hubness.HubCap]:
    queries = pl.Series([f"q{i}" for i in range(max(lists) + 1)])
    documents = pl.Series([f"d{i}" for i in range(20)])
    propose = make_proposals(lists, n)
    hub_cap = hubness.apply_hub_cap(hubness.HubCap(queries, documents, seed), max_queries, 20, propose)
    proposals = propose(hub_cap, None)
    return {q: proposals.filter(query=q)["document"].to_list() for q in lists}, hub_cap


def test_the_hardest_queries_keep_a_document_and_the_others_take_their_next():
    lists = {0: [(7, 0.5), (1, 0.4)], 1: [(7, 0.9), (2, 0.1)], 2: [(7, 0.6), (1, 0.3)]}
    found, hub_cap = apply_cap(lists, 1, 1)
    # query 1 keeps 7; both others propose 1, which query 0 keeps; query 2 has no document left
    assert found == {0: [1], 1: [7], 2: []}
    assert (hub_cap.n_capped_documents, hub_cap.n_rejected) == (2, 3)
    assert apply_cap(lists, 1, 2)[0] == {0: [1], 1: [7], 2: [7]}
    assert apply_cap(lists, 1, 3)[0] == {0: [7], 1: [7], 2: [7]}


def test_equal_scores_are_ordered_by_the_hash_of_seed_and_ids():
    lists = {q: [(7, 0.5), (10 + q, 0.1)] for q in range(4)}
    for seed in range(3):
        order = sorted(range(4), key=lambda q: xxhash.xxh3_64_intdigest(f"{seed}:hub:q{q}:d7".encode()))
        found, _ = apply_cap(lists, 1, 2, seed)
        assert {q for q in lists if found[q] == [7]} == set(order[:2])


@settings(max_examples=100)
@given(
    lists=st.dictionaries(
        st.integers(0, 6),
        st.dictionaries(st.integers(0, 19), st.integers(0, 4), max_size=10),
        min_size=1,
        max_size=7,
    ),
    n=st.integers(1, 4),
    cap=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_the_assignment_is_stable_and_the_same_in_any_order(lists, n, cap, order):
    ranked = {q: sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])) for q, scores in lists.items()}
    ranked = {q: [(d, float(s)) for d, s in documents] for q, documents in ranked.items()}
    found, _ = apply_cap(ranked, n, cap)
    counts = np.bincount(np.array([d for some in found.values() for d in some], dtype=np.int64), minlength=20)
    assert counts.max() <= cap
    shuffled = list(ranked)
    order.shuffle(shuffled)
    assert apply_cap({q: ranked[q] for q in shuffled}, n, cap)[0] == found

    def rank(query: int, document: int) -> tuple:
        return -lists[query][document], xxhash.xxh3_64_intdigest(f"0:hub:q{query}:d{document}".encode())

    # stable: no query and document that both prefer each other to what they have
    for query, documents in ranked.items():
        for position, (document, _) in enumerate(documents):
            if document in found[query]:
                continue
            better = [d for d, _ in documents[:position]]
            if len([d for d in found[query] if d in better]) == n:
                continue
            holders = [q for q, some in found.items() if document in some]
            assert len(holders) == cap
            assert all(rank(q, document) < rank(query, document) for q in holders)
