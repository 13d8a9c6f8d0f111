"""The cap on hubs: who keeps a document, that no order of queries enters, and that nobody is left over the cap."""

import numpy as np
import polars as pl
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.mining.sampling import hubness

SCHEMA = {"query": pl.UInt32, "document": pl.UInt32, "score": pl.Float32}


def chosen_of(lists: dict[int, list[tuple[int, float]]], n: int, blocks: int = 1) -> hubness.ProposalFunction:
    """Each query takes its first `n` documents that are not barred; `lists`: query -> [(document, score)] in
    order."""

    def wants(caps: hubness.HubCap, some: pl.Series | None) -> pl.DataFrame:
        rows = []
        for query, documents in lists.items():
            if some is None or query in some:
                frame = pl.DataFrame([(query, d, s) for d, s in documents], schema=SCHEMA, orient="row")
                rows += frame.filter(~pl.Series(caps.is_rejected(frame))).head(n).rows()
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    return wants


def settled(lists: dict[int, list[tuple[int, float]]], n: int, cap: int, seed: int = 0) -> tuple[dict, hubness.HubCap]:
    queries = pl.Series([f"q{i}" for i in range(max(lists) + 1)])
    documents = pl.Series([f"d{i}" for i in range(20)])
    wants = chosen_of(lists, n)
    caps = hubness.apply_hub_cap(hubness.HubCap(queries, documents, seed), cap, 20, wants)
    taken = wants(caps, None)
    return {q: taken.filter(query=q)["document"].to_list() for q in lists}, caps


def test_a_document_stays_where_it_is_hardest_and_the_others_take_their_next():
    lists = {0: [(7, 0.5), (1, 0.4)], 1: [(7, 0.9), (2, 0.1)], 2: [(7, 0.6), (1, 0.3)]}
    found, caps = settled(lists, 1, 1)
    # 7 goes to query 1; both others come to 1, where query 0 is harder, and query 2 has no more
    assert found == {0: [1], 1: [7], 2: []}
    assert (caps.n_capped_documents, caps.n_rejected) == (2, 3)
    assert settled(lists, 1, 2)[0] == {0: [1], 1: [7], 2: [7]}
    assert settled(lists, 1, 3)[0] == {0: [7], 1: [7], 2: [7]}


def test_equal_scores_go_by_the_hash_of_seed_and_ids():
    lists = {q: [(7, 0.5), (10 + q, 0.1)] for q in range(4)}
    for seed in range(3):
        order = sorted(range(4), key=lambda q: xxhash.xxh3_64_intdigest(f"{seed}:hub:q{q}:d7".encode()))
        found, _ = settled(lists, 1, 2, seed)
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
    wished = {q: sorted(of.items(), key=lambda pair: (-pair[1], pair[0])) for q, of in lists.items()}
    wished = {q: [(d, float(s)) for d, s in some] for q, some in wished.items()}
    found, _ = settled(wished, n, cap)
    counts = np.bincount(np.array([d for some in found.values() for d in some], dtype=np.int64), minlength=20)
    assert counts.max() <= cap
    shuffled = list(wished)
    order.shuffle(shuffled)
    assert settled({q: wished[q] for q in shuffled}, n, cap)[0] == found

    def rank(query: int, document: int) -> tuple:
        return -lists[query][document], xxhash.xxh3_64_intdigest(f"0:hub:q{query}:d{document}".encode())

    # no query would rather have a document that would rather have the query
    for query, documents in wished.items():
        for place, (document, _) in enumerate(documents):
            if document in found[query]:
                continue
            better = [d for d, _ in documents[:place]]
            if len([d for d in found[query] if d in better]) == n:
                continue
            holders = [q for q, some in found.items() if document in some]
            assert len(holders) == cap
            assert all(rank(q, document) < rank(query, document) for q in holders)
