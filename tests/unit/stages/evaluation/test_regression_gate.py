"""The verdict on a new reranker, by hand."""

import polars as pl
import pytest
from pydantic import ValidationError

from stages.evaluation.regression_gate import Params, compare_rerankers


def results(*values: float) -> pl.DataFrame:
    ids = [f"q{number}" for number in range(len(values))]
    schema = {"query_id": pl.String, "group": pl.String, "value": pl.Float64}
    return pl.DataFrame({"query_id": ids, "group": ids, "value": values}, schema=schema)


@pytest.mark.parametrize(
    ("new", "old", "verdict", "difference"),
    [
        ([0.5] * 6, [0.75] * 6, "worse", -0.25),
        ([0.75] * 6, [0.5] * 6, "better", 0.25),
        ([0.5] * 6, [0.5] * 6, "same", 0.0),
        ([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1], "same", 0.0),
        ([0] * 5, [1] * 5, "same", -1.0),  # too few to tell, however bad
    ],
)
def test_verdicts(new: list[float], old: list[float], verdict: str, difference: float) -> None:
    found = compare_rerankers(results(*new), results(*old).drop("group"), Params())
    assert (found["verdict"], found["difference"], found["n_queries"]) == (verdict, difference, len(new))


def test_a_loss_may_pass_at_a_higher_confidence() -> None:
    # five of eight questions lose, one wins: P(mean >= 0 in a sample) is about 4 %
    new, old = results(0, 0, 0, 0, 0, 1, 0, 0), results(1, 1, 1, 1, 1, 0, 0, 0)
    assert compare_rerankers(new, old, Params(confidence=0.8))["verdict"] == "worse"
    assert compare_rerankers(new, old, Params(confidence=0.99))["verdict"] == "same"


def test_the_order_of_the_questions_does_not_matter() -> None:
    new, old = results(0.1, 0.9, 0.3, 0.2, 0.5, 0.4), results(0.3, 0.8, 0.4, 0.2, 0.6, 0.1)
    assert compare_rerankers(new.reverse(), old, Params()) == compare_rerankers(new, old, Params())


def test_nothing_to_compare_on() -> None:
    found = compare_rerankers(results(), results(), Params())
    assert found == {
        "metric": "nDCG@10",
        "new_mean": None,
        "published_mean": None,
        "difference": None,
        "low": None,
        "high": None,
        "p": None,
        "verdict": "same",
        "n_queries": 0,
    }


def test_other_questions_are_a_defect() -> None:
    with pytest.raises(ValueError, match="same queries"):
        compare_rerankers(results(1, 2), results(1, 2, 3), Params())


def test_a_measure_that_is_not_measured_is_refused() -> None:
    with pytest.raises(ValidationError):
        Params(metric="nDCG@7")
