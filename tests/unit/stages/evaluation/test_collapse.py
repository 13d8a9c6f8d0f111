"""Which scores can't rank."""

import polars as pl
import pytest

from stages.evaluation.collapse import compute_max_score_range, detect_score_collapse

KEYS = ["list", "query_id"]


def scored(*lists: list[float]) -> pl.DataFrame:
    rows = [("test", f"q{number}", score) for number, scores in enumerate(lists) for score in scores]
    schema = {"list": pl.String, "query_id": pl.String, "score": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (scored([0.1, 0.5, 0.3], [0.1, 0.1, 0.2]), None),
        (scored([0.1, 0.1], [9.0, 9.0]), "the reranker gives all documents of a list the same score"),
        (scored([0.1, 0.10005], [9.0, 9.0]), "the reranker gives all documents of a list the same score"),
        (scored([0.1, 0.1002], [9.0, 9.0]), None),
        (scored([float("nan"), 0.1, 0.2]), "the reranker's scores are not all finite numbers: its training diverged"),
        (scored([0.0] * 40 + [1.0]), "97.5% of neighbours in the reranker's rankings have the same score"),
        (scored([0.0] * 18 + [1.0, 2.0]), None),
        (scored([0.5], [0.7]), None),
        (scored(), None),
    ],
)
def test_a_collapse_is_named(scores: pl.DataFrame, expected: str | None) -> None:
    assert detect_score_collapse(scores, KEYS) == expected


def test_the_widest_range_of_a_list() -> None:
    assert compute_max_score_range(scored([0.5, 2.0, 1.0], [7.0, 7.5]), KEYS) == 1.5
    assert compute_max_score_range(scored([float("nan"), 1.0]), KEYS) == 0.0
    assert compute_max_score_range(scored(), KEYS) == 0.0
