"""Greedy selection without near-duplicates: all queries at once give the same as one query at a time."""

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.mining.sampling.near_duplicates import NearDuplicateFilter, greedy_select

AXES = {"x": [1.0, 0.0], "x2": [3.0, 0.1], "y": [0.0, 2.0], "xy": [1.0, 1.0], "zero": [0.0, 0.0]}
"""cos(x, x2) = 0.99944, cos(x, xy) = cos(y, xy) = 0.7071, cos(x2, xy) = 0.7303."""


def vectors(frame: pl.DataFrame) -> np.ndarray:
    return np.array([AXES[doc_id] for doc_id in frame["doc_id"]], dtype=np.float32)


def select(doc_ids: list[str], negatives: int, similarity: float, curated: int = 0) -> tuple[list[str], int]:
    """The documents that one query selects, and the number skipped; the first `curated` documents are curated."""
    rows = range(len(doc_ids))
    pick_order = pl.DataFrame(
        {"query": 0, "row": rows, "stratum_index": [int(r >= curated) for r in rows], "cap": negatives}
    )
    duplicate_filter = NearDuplicateFilter(pl.Series("doc_id", doc_ids), similarity, vectors)
    picks, skipped = greedy_select(pick_order, np.array([r < curated for r in rows]), negatives, duplicate_filter)
    return [doc_ids[pick] for pick in picks], len(skipped)


def test_a_near_duplicate_is_replaced_by_the_next_document():
    assert select(["x", "x2", "y", "xy"], 2, 0.98) == (["x", "y"], 1)
    assert select(["x2", "x", "y", "xy"], 3, 0.98) == (["x2", "y", "xy"], 1)
    assert select(["x", "x2", "y"], 2, 0.9995) == (["x", "x2"], 0)
    assert select(["x", "y", "xy"], 3, 0.7) == (["x", "y"], 1)
    assert select(["xy", "x", "y"], 3, 0.7) == (["xy"], 2)
    assert select(["x", "x", "zero", "zero"], 4, 1.0) == (["x", "zero", "zero"], 1)


def test_curated_negatives_are_never_skipped():
    assert select(["x", "x2", "x", "y"], 3, 0.98, curated=2) == (["x", "x2", "y"], 1)


def test_a_row_of_a_full_stratum_can_be_selected_from_a_later_one():
    pick_order = pl.DataFrame(
        [(0, 0, 1, 1), (0, 1, 1, 1), (0, 2, 1, 1), (0, 1, 2, 2), (0, 0, 2, 2), (0, 2, 2, 2)],
        schema=["query", "row", "stratum_index", "cap"],
        orient="row",
    )
    picks, _ = greedy_select(pick_order, np.zeros(3, np.bool_), 3, None)
    assert pick_order["row"][picks].to_list() == [0, 1, 2]
    assert pick_order["stratum_index"][picks].to_list() == [1, 2, 2]


def test_only_the_vectors_of_tried_rows_are_fetched():
    names = [f"d{i}" for i in range(500)]
    fetched: list[str] = []

    def vectorise(frame: pl.DataFrame) -> np.ndarray:
        fetched.extend(frame["doc_id"])
        return np.eye(500, dtype=np.float32)[[int(name[1:]) for name in frame["doc_id"]]]

    pick_order = pl.DataFrame({"query": 0, "row": range(500), "stratum_index": 1, "cap": 4})
    duplicate_filter = NearDuplicateFilter(pl.Series(names), 0.98, vectorise)
    assert greedy_select(pick_order, np.zeros(500, np.bool_), 4, duplicate_filter).picks.tolist() == [0, 1, 2, 3]
    assert sorted(fetched) == ["d0", "d1", "d2", "d3"]


def select_one_by_one(pick_order: list[tuple], curated: list[bool], negatives: int, near) -> tuple[list, list]:
    """The picks and the skipped near-duplicates of one query, row by row."""
    picks: list[int] = []
    skipped: list[int] = []
    selected: list[int] = []
    counts: dict[int, int] = {}
    consumed: set[int] = set()
    for number, (_, row, stratum, cap) in pick_order:
        if len(selected) == negatives or row in consumed or counts.get(stratum, 0) >= cap:
            continue
        consumed.add(row)
        if not curated[row] and any(near(row, other) for other in selected):
            skipped.append(number)
            continue
        selected.append(row)
        picks.append(number)
        counts[stratum] = counts.get(stratum, 0) + 1
    return picks, skipped


@settings(max_examples=150)
@given(
    queries=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    points=st.lists(st.integers(0, 15), min_size=24, max_size=24),
    curated=st.lists(st.booleans(), min_size=24, max_size=24),
    negatives=st.integers(1, 5),
)
def test_all_queries_at_once_equal_one_query_at_a_time(queries, points, curated, negatives):
    # query q has the rows 6 q to 6 q + 5; points lie on a circle and are near if at most one step apart
    angles = np.array(points) * (2 * np.pi / 16)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pick_order = [(q, 6 * q + row, stratum, cap) for q, rows in enumerate(queries) for row, stratum, cap in rows]
    frame = pl.DataFrame(pick_order, schema=["query", "row", "stratum_index", "cap"], orient="row")
    ids = pl.Series([f"d{i}" for i in range(24)])
    duplicate_filter = NearDuplicateFilter(ids, 0.9, lambda rows: vectors[[int(name[1:]) for name in rows["doc_id"]]])
    picks, skipped = greedy_select(frame, np.array(curated), negatives, duplicate_filter)

    def near(a: int, b: int) -> bool:
        steps = abs(points[a] - points[b])
        return min(steps, 16 - steps) <= 1

    expected_picks, expected_skipped = [], []
    for q in range(len(queries)):
        query_order = [(number, row) for number, row in enumerate(pick_order) if row[0] == q]
        query_picks, query_skipped = select_one_by_one(query_order, curated, negatives, near)
        expected_picks += query_picks
        expected_skipped += query_skipped
    assert picks.tolist() == expected_picks
    assert sorted(skipped.tolist()) == expected_skipped
