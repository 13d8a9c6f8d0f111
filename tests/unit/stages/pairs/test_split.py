"""Sides drawn for units, not for rows."""

import numpy as np
import polars as pl
import pytest

from stages.core.errors import InputError
from stages.pairs.split import (
    Edges,
    SplitAssignment,
    SplitConstraints,
    SplitRatios,
    assign_splits,
    count_split_changes,
    find_components,
    hash_to_split,
)

HALVES = SplitRatios(dev=0.25, test=0.25, unit="component", seed=0)
DOCUMENTS = [f"d{number:03d}" for number in range(200)]


def ints(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


def ties(documents: list[int], restated: list[int] | None = None, groups: list[int] | None = None) -> SplitConstraints:
    """Question number i with the one document documents[i]."""
    count = len(documents)
    every = np.arange(count)
    grouped: Edges | None = None if groups is None else (every, np.array(groups))
    return SplitConstraints(count, np.array(restated or range(count)), (every, np.array(documents)), grouped)


def name(kind: int, number: int) -> str:
    return "gdq"[kind] + f"{number:03d}"


def units(found: SplitAssignment) -> list[str]:
    return [
        name(kind, number) for kind, number in zip(found.unit_kind.tolist(), found.unit_number.tolist(), strict=True)
    ]


def test_components_by_hand() -> None:
    first: Edges = (ints(0, 1, 2, 3), ints(5, 5, 6, 7))
    second: Edges = (ints(2, 4), ints(0, 0))
    assert find_components(6, [first, second]).tolist() == [0, 0, 1, 2, 1, 3]


def test_shared_documents_restatements_and_groups_tie() -> None:
    spread = list(range(10, 22))  # untied questions, so that nothing is a fifth of all
    assert units(assign_splits(ties([3, 3, 4, *spread]), None, HALVES, name))[:3] == ["d003", "d003", "d004"]
    restated = [0, 1, 1, *range(2, 14)]
    assert units(assign_splits(ties([3, 4, 5, *spread], restated), None, HALVES, name))[:3] == ["d003", "d004", "d004"]
    groups = [7, 8, 7, *range(20, 32)]
    assert units(assign_splits(ties([3, 4, 5, *spread], None, groups), None, HALVES, name))[:3] == [
        "g007",
        "g008",
        "g007",
    ]


def test_the_split_of_a_unit_depends_on_its_name() -> None:
    found = assign_splits(ties(list(range(50))), None, HALVES, name)
    expected = [["train", "dev", "test"].index(hash_to_split(f"d{i:03d}", 0, 0.25, 0.25)) for i in range(50)]
    assert found.split_index.tolist() == expected
    assert set(expected) == {0, 1, 2}


def test_shares_are_kept_roughly() -> None:
    sides = [hash_to_split(str(number), 1, 0.1, 0.2) for number in range(4000)]
    assert 300 < sides.count("dev") < 500
    assert 700 < sides.count("test") < 900


def test_a_giant_component_is_split_by_question_and_logged() -> None:
    found = assign_splits(ties([0, 0, 0, 1, 2, 3]), None, HALVES, name)
    assert units(found) == ["q000", "q001", "q002", "d001", "d002", "d003"]
    assert "3 of 6 questions" in found.notes[0]


def test_by_group_needs_groups_and_keeps_them_however_large() -> None:
    by_group = SplitRatios(0.1, 0.1, "group", 0)
    with pytest.raises(InputError, match="group column"):
        assign_splits(ties([0, 1]), None, by_group, name)
    assert units(assign_splits(ties([0, 1, 1], None, [4, 4, 4]), None, by_group, name)) == ["g004", "g004", "g004"]


def test_by_question_ties_only_restatements() -> None:
    by_question = SplitRatios(0.1, 0.1, "question", 0)
    assert units(assign_splits(ties([0, 0, 0], [0, 1, 1]), None, by_question, name)) == ["q000", "q001", "q001"]


def test_own_split_is_kept() -> None:
    found = assign_splits(ties([0, 1, 2]), np.array([0, 1, 2], dtype=np.int8), HALVES, name)
    assert found.split_index.tolist() == [0, 1, 2]
    assert found.notes == []


def test_own_dev_becomes_test_and_dev_is_cut_from_train() -> None:
    own = np.array([0] * 40 + [1] * 5, dtype=np.int8)
    found = assign_splits(ties(list(range(45))), own, HALVES, name)
    assert found.split_index[40:].tolist() == [2] * 5
    expected = ["dev" if hash_to_split(f"d{i:03d}", 0, 0.25, 0.0) == "dev" else "train" for i in range(40)]
    assert [["train", "dev"][place] for place in found.split_index[:40].tolist()] == expected
    assert "dev" in expected


def test_the_table_s_dev_split_is_kept_without_a_test_ratio() -> None:
    own = np.array([0, 0, 1], dtype=np.int8)
    found = assign_splits(ties([0, 1, 2]), own, SplitRatios(0.25, 0.0, "component", 0), name)
    assert found.split_index.tolist() == [0, 0, 1]
    assert found.notes == []
    no_dev = assign_splits(ties([0, 1, 2]), own, SplitRatios(0.0, 0.25, "component", 0), name)
    assert no_dev.split_index.tolist() == [0, 0, 2]


def test_own_split_of_train_only_is_no_split() -> None:
    plain = assign_splits(ties(list(range(30))), None, HALVES, name)
    assert (
        assign_splits(ties(list(range(30))), np.zeros(30, dtype=np.int8), HALVES, name).split_index.tolist()
        == plain.split_index.tolist()
    )


def test_moved_counts_questions_on_another_side() -> None:
    old = pl.DataFrame({"query_id": ["a", "b", "c"], "split": ["train", "dev", "test"]})
    new = pl.DataFrame({"query_id": ["a", "b", "d"], "split": ["train", "test", "dev"]})
    assert count_split_changes(old, new) == 1
