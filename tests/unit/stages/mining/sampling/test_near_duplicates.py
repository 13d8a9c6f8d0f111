"""Thinning: near-duplicates of what is taken give way to the next, in step over all queries as one query at a time."""

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.mining.sampling.near_duplicates import NearDuplicateFilter, greedy_select

AXES = {"x": [1.0, 0.0], "x2": [3.0, 0.1], "y": [0.0, 2.0], "xy": [1.0, 1.0], "zero": [0.0, 0.0]}
"""cos(x, x2) = 0.99944, cos(x, xy) = cos(y, xy) = 0.7071, cos(x2, xy) = 0.7303."""


def vectors(frame: pl.DataFrame) -> np.ndarray:
    return np.array([AXES[doc_id] for doc_id in frame["doc_id"]], dtype=np.float32)


def taken(doc_ids: list[str], negatives: int, similarity: float, curated: int = 0) -> tuple[list[str], int]:
    """What one query takes of documents in their order, the first `curated` of which people chose."""
    rows = range(len(doc_ids))
    visits = pl.DataFrame({"query": 0, "row": rows, "counter": [int(r >= curated) for r in rows], "upto": negatives})
    alike = NearDuplicateFilter(pl.Series("doc_id", doc_ids), similarity, vectors)
    found, thinned = greedy_select(visits, np.array([r < curated for r in rows]), negatives, alike)
    return [doc_ids[place] for place in found], len(thinned)


def test_the_second_of_two_near_ones_gives_way_to_the_next():
    assert taken(["x", "x2", "y", "xy"], 2, 0.98) == (["x", "y"], 1)
    assert taken(["x2", "x", "y", "xy"], 3, 0.98) == (["x2", "y", "xy"], 1)
    assert taken(["x", "x2", "y"], 2, 0.9995) == (["x", "x2"], 0)
    assert taken(["x", "y", "xy"], 3, 0.7) == (["x", "y"], 1)
    assert taken(["xy", "x", "y"], 3, 0.7) == (["xy"], 2)
    assert taken(["x", "x", "zero", "zero"], 4, 1.0) == (["x", "zero", "zero"], 1)


def test_people_s_choices_all_stay_and_others_give_way_to_them():
    assert taken(["x", "x2", "x", "y"], 3, 0.98, curated=2) == (["x", "x2", "y"], 1)


def test_a_counter_that_is_full_leaves_its_rows_to_a_later_visit():
    visits = pl.DataFrame(
        [(0, 0, 1, 1), (0, 1, 1, 1), (0, 2, 1, 1), (0, 1, 2, 2), (0, 0, 2, 2), (0, 2, 2, 2)],
        schema=["query", "row", "counter", "upto"],
        orient="row",
    )
    found, _ = greedy_select(visits, np.zeros(3, np.bool_), 3, None)
    assert visits["row"][found].to_list() == [0, 1, 2]
    assert visits["counter"][found].to_list() == [1, 2, 2]


def test_vectors_are_fetched_only_as_deep_as_needed():
    names = [f"d{i}" for i in range(500)]
    asked: list[str] = []

    def vectorise(frame: pl.DataFrame) -> np.ndarray:
        asked.extend(frame["doc_id"])
        return np.eye(500, dtype=np.float32)[[int(name[1:]) for name in frame["doc_id"]]]

    visits = pl.DataFrame({"query": 0, "row": range(500), "counter": 1, "upto": 4})
    assert greedy_select(
        visits, np.zeros(500, np.bool_), 4, NearDuplicateFilter(pl.Series(names), 0.98, vectorise)
    ).picks.tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert sorted(asked) == ["d0", "d1", "d2", "d3"]


def naive(visits: list[tuple], curated: list[bool], negatives: int, near) -> tuple[list[int], list[int]]:
    """One query, visit by visit."""
    places: list[int] = []
    passed: list[int] = []
    held: list[int] = []
    counts: dict[int, int] = {}
    gone: set[int] = set()
    for place, (_, row, counter, upto) in visits:
        if len(held) == negatives or row in gone or counts.get(counter, 0) >= upto:
            continue
        gone.add(row)
        if not curated[row] and any(near(row, other) for other in held):
            passed.append(place)
            continue
        held.append(row)
        places.append(place)
        counts[counter] = counts.get(counter, 0) + 1
    return places, passed


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
def test_all_queries_in_step_equal_one_query_at_a_time(queries, points, curated, negatives):
    # rows 6 q to 6 q + 5 are query q's; points lie on a circle, near where at most one step apart
    angles = np.array(points) * (2 * np.pi / 16)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    visits = [(q, 6 * q + row, counter, upto) for q, some in enumerate(queries) for row, counter, upto in some]
    frame = pl.DataFrame(visits, schema=["query", "row", "counter", "upto"], orient="row")
    ids = pl.Series([f"d{i}" for i in range(24)])
    alike = NearDuplicateFilter(ids, 0.9, lambda some: places[[int(name[1:]) for name in some["doc_id"]]])
    found, thinned = greedy_select(frame, np.array(curated), negatives, alike)

    def near(a: int, b: int) -> bool:
        apart = abs(points[a] - points[b])
        return min(apart, 16 - apart) <= 1

    expected, passed = [], []
    for q in range(len(queries)):
        places_q, thinned_q = naive([(i, v) for i, v in enumerate(visits) if v[0] == q], curated, negatives, near)
        expected += places_q
        passed += thinned_q
    assert found.tolist() == expected
    assert sorted(thinned.tolist()) == passed
