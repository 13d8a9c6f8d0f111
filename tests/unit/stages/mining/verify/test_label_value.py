import numpy as np
import polars as pl
import pytest

from stages.mining.verify.label_value import compute_label_value, sort_by_label_value

ROWS = pl.DataFrame(
    [
        # query, document, p, threshold, is_selected, is_within_cutoff
        ("q1", "a", 0.5, 0.75, True, True),  # 0.5: half a false negative less
        ("q1", "b", 0.125, 0.25, True, True),  # 0.125
        ("q1", "c", 0.5, 0.25, False, True),  # 0.5 x 0.25 = 0.125
        ("q1", "d", 0.75, 0.5, False, True),  # 0.25 x 0.5 = 0.125
        ("q2", "a", 1.0, 0.5, False, True),  # certainly relevant: 0
        ("q2", "b", 0.0, 0.5, True, True),  # certainly not relevant: 0
        ("q2", "c", 0.5, 0.25, False, False),  # below the cutoff: 0
        ("q2", "d", None, None, True, True),  # no estimate: 0
        ("q2", "e", 0.5, None, False, True),  # no threshold: 0
        ("q2", "f", 0.25, 1.0, False, True),  # 0.75 x 1 = 0.75
        ("q2", "g", 0.0625, None, True, True),  # 0.0625: a selected one needs no threshold
    ],
    schema={
        "query_id": pl.String,
        "doc_id": pl.String,
        "p_false_negative": pl.Float32,
        "threshold": pl.Float32,
        "is_selected": pl.Boolean,
        "is_within_cutoff": pl.Boolean,
    },
    orient="row",
)


def test_the_label_value_by_hand() -> None:
    columns = [ROWS[name].to_numpy() for name in ("p_false_negative", "threshold", "is_selected", "is_within_cutoff")]
    assert compute_label_value(*columns).tolist() == [0.5, 0.125, 0.125, 0.125, 0, 0, 0, 0, 0, 0.75, 0.0625]


def test_the_label_value_of_padded_tables() -> None:
    table = np.full((2, 3), 0.5, np.float32)
    yes = np.ones((2, 3), np.bool_)
    assert compute_label_value(table, table, yes, yes).tolist() == [[0.5] * 3] * 2
    assert compute_label_value(table, table, ~yes, yes).tolist() == [[0.25] * 3] * 2


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_sorted_by_label_value_and_ids(seed: int) -> None:
    found = sort_by_label_value(ROWS.sample(fraction=1.0, shuffle=True, seed=seed))
    assert found.select("query_id", "doc_id", "label_value").rows() == [
        ("q2", "f", 0.75),
        ("q1", "a", 0.5),
        ("q1", "b", 0.125),
        ("q1", "c", 0.125),
        ("q1", "d", 0.125),
        ("q2", "g", 0.0625),
    ]


def test_no_rows() -> None:
    assert sort_by_label_value(ROWS.clear()).is_empty()
