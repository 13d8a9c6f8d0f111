"""Metrics against figures worked out by hand, and ties that must never help."""

import math
from collections.abc import Sequence

import polars as pl
import pytest

from stages.evaluation.metrics import Evaluator, assign_pessimistic_ranks, average_metrics, list_metric_names

QRELS_SCHEMA = ["query_id", "doc_id", "relevance"]
RUN_SCHEMA = [*QRELS_SCHEMA, "score"]


def qrels(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=QRELS_SCHEMA, orient="row")


def run(*rows: tuple[str, str, int, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=RUN_SCHEMA, orient="row")


def per_query(run: pl.DataFrame, qrels: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return Evaluator(qrels, names).evaluate(run)


def values(frame: pl.DataFrame) -> dict[str, float]:
    return dict(frame.select("metric", "value").iter_rows())


def test_names_are_the_literatures_and_end_with_the_recall_of_the_list() -> None:
    fixed = ("nDCG@10", "MRR@10", "MAP@100", "Hit@1", "Hit@3", "Hit@5", "R@10")
    assert list_metric_names(50) == (*fixed, "R@50")
    assert list_metric_names(10) == fixed


def test_each_metric_by_hand() -> None:
    # ranking: x, a, y, b; the third positive, z, was not retrieved
    found = values(
        per_query(
            run(("q", "x", 0, 0.9), ("q", "a", 1, 0.8), ("q", "y", 0, 0.7), ("q", "b", 1, 0.6)),
            qrels(("q", "a", 1), ("q", "b", 1), ("q", "z", 1), ("q", "y", 0)),
            list_metric_names(50),
        )
    )
    assert found == pytest.approx(
        {
            "nDCG@10": (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2),
            "MRR@10": 1 / 2,
            "MAP@100": (1 / 2 + 2 / 4) / 3,
            "Hit@1": 0,
            "Hit@3": 1,
            "Hit@5": 1,
            "R@10": 2 / 3,
            "R@50": 2 / 3,
        }
    )
    assert found["nDCG@10"] == pytest.approx(0.498190, abs=1e-6)


def test_graded_relevance_is_the_gain() -> None:
    found = values(
        per_query(run(("q", "b", 1, 2.0), ("q", "a", 3, 1.0)), qrels(("q", "a", 3), ("q", "b", 1)), ["nDCG@10"])
    )
    assert found["nDCG@10"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_cutoffs_hold_at_their_edge() -> None:
    ranked = [("q", f"d{place:02}", int(place == 11), float(-place)) for place in range(1, 13)]
    names = ["nDCG@10", "MRR@10", "R@10", "R@50", "MAP@100"]
    found = values(per_query(run(*ranked), qrels(("q", "d11", 1)), names))
    assert found == pytest.approx({"nDCG@10": 0, "MRR@10": 0, "R@10": 0, "R@50": 1, "MAP@100": 1 / 11})


@pytest.mark.parametrize("positive", ["a", "m", "z"])
def test_equal_scores_get_the_worst_metrics_at_any_position_of_the_positive(positive: str) -> None:
    tied = run(*[("q", doc, int(doc == positive), 1.0) for doc in "abmz"])
    assert values(per_query(tied, qrels(("q", positive, 1)), ["MRR@10", "Hit@1", "Hit@3", "Hit@5"])) == {
        "MRR@10": 0.25,
        "Hit@1": 0,
        "Hit@3": 0,
        "Hit@5": 1,
    }


def test_ties_stand_by_relevance_rising_then_doc_id() -> None:
    tied = run(("q", "c", 2, 1.0), ("q", "b", 0, 1.0), ("q", "a", 1, 1.0), ("q", "d", 0, 1.0), ("q", "e", 1, 2.0))
    assert assign_pessimistic_ranks(tied).select("doc_id", "rank").rows() == [
        ("e", 1),
        ("b", 2),
        ("d", 3),
        ("a", 4),
        ("c", 5),
    ]


def test_a_nan_score_is_ranked_last() -> None:
    odd = run(("q", "a", 1, math.nan), ("q", "b", 0, -5.0), ("q", "c", 0, -math.inf), ("q", "d", 0, math.inf))
    assert assign_pessimistic_ranks(odd)["doc_id"].to_list() == ["d", "b", "c", "a"]


def test_scores_closer_than_float32_can_tell_are_still_ranked() -> None:
    close = run(("q", "a", 1, 1.0 + 1e-12), ("q", "b", 0, 1.0))
    assert values(per_query(close, qrels(("q", "a", 1)), ["Hit@1"])) == {"Hit@1": 1}


def test_a_query_that_the_run_lacks_counts_zero() -> None:
    found = per_query(run(("q1", "a", 1, 1.0)), qrels(("q1", "a", 1), ("q2", "b", 1)), ["MRR@10", "nDCG@10"])
    assert found.rows() == [
        ("q1", "MRR@10", 1.0),
        ("q1", "nDCG@10", 1.0),
        ("q2", "MRR@10", 0.0),
        ("q2", "nDCG@10", 0.0),
    ]
    assert average_metrics(found) == {"MRR@10": 0.5, "nDCG@10": 0.5}


def test_an_evaluator_keeps_no_state_between_runs() -> None:
    evaluator = Evaluator(qrels(("q", "a", 1)), ["MRR@10"])
    good, bad = (run(("q", "a", 1, score), ("q", "b", 0, 0.0)) for score in (1.0, -1.0))
    assert [values(evaluator.evaluate(one))["MRR@10"] for one in (good, bad, good)] == [1.0, 0.5, 1.0]
