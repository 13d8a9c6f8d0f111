"""The check by hand: what comes back of the positives that were hidden."""

import polars as pl
import pytest

from stages.core import schemas
from stages.mining.explain import describe_estimate
from stages.mining.holdout_validation import validate_on_holdout
from stages.mining.params import Params
from stages.mining.risk_budget import RiskSolution
from tests.unit.stages.mining.collection import table


def taught() -> pl.DataFrame:
    """One question with four positives, one of which is hidden; the others score 0.9, 0.8 and 0.7."""
    rows = [("x", 1, 0.85, False, 0.1), ("h", 2, 0.84, True, 0.4), ("y", 3, 0.6, False, 0.2), ("z", 4, 0.5, False, 0.0)]
    return table(
        schemas.HOLDOUT_CANDIDATES,
        *(("q", 0, doc, rank, score, hidden, 4.0, p, 0.7, 0.9) for doc, rank, score, hidden, p in rows),
    )


def test_what_a_mask_lets_through_of_what_was_hidden() -> None:
    # none: the three best, x, h and y. h stands for 0.85 x 3 that nobody labelled, beside two that are written, which
    # count 1 / (1 + 0.1 / 3) and 1 / (1 + 0.2 / 3)
    assert validate_on_holdout(Params(mask="none", num_negatives=3), None, taught()) == {
        "n_queries": 1,
        "n_negatives": 3,
        "n_held_out": 1,
        "expected": pytest.approx((0.1 * 0.96774 + 0.2 * 0.9375) / 1.90524, abs=1e-5),
        "observed": 1.0,  # 2.55 / 1.90524, at most 1
        "low": 1.0,  # the one question, whatever is drawn
        "high": 1.0,
        "max_false_negatives": None,
    }
    # perc: at most 0.95 x 0.7; y and z
    assert validate_on_holdout(Params(mask="perc", num_negatives=3), None, taught()) == {
        "n_queries": 1, "n_negatives": 2, "n_held_out": 0, "expected": pytest.approx(0.1875 / 1.9375, abs=1e-5),
        "observed": 0.0, "low": 0.0, "high": 0.0, "max_false_negatives": None,
    }  # fmt: skip
    # learned at a price of 1: 0.85 - 0.1, 0.84 - 0.4, 0.6 - 0.2, 0.5: x and z
    limit = RiskSolution(0.02, 1.0, 1.0, 0.05, 0.5, 2)
    assert validate_on_holdout(Params(mask="learned", num_negatives=2), limit, taught()) == {
        "n_queries": 1, "n_negatives": 2, "n_held_out": 0, "expected": pytest.approx(0.09677 / 1.96774, abs=1e-5),
        "observed": 0.0, "low": 0.0, "high": 0.0, "max_false_negatives": 0.02,
    }  # fmt: skip


def test_each_turn_is_a_question_of_its_own() -> None:
    twice = pl.concat([taught(), taught().with_columns(fold=pl.lit(1, pl.Int32))])
    found = validate_on_holdout(Params(mask="none", num_negatives=2), None, twice)
    assert found is not None
    assert (found["n_queries"], found["n_negatives"], found["n_held_out"]) == (1, 4, 2)
    assert validate_on_holdout(Params(), None, taught().clear()) is None


def test_what_the_learned_mask_never_writes_is_not_counted_as_written() -> None:
    likely = taught().with_columns(p_false_negative=pl.lit(0.51, pl.Float32))
    found = validate_on_holdout(
        Params(mask="learned", num_negatives=2), RiskSolution(0.02, 0.0, 1.0, 0.05, 0.5, 2), likely
    )
    assert found is not None
    assert (found["n_negatives"], found["n_held_out"]) == (0, 0)


def test_the_interval_is_that_of_questions() -> None:
    """Of two questions one lets a hidden positive through: both may be drawn twice."""
    harmless = taught().with_columns(query_id=pl.lit("r"), held_out=pl.lit(False))
    found = validate_on_holdout(Params(mask="none", num_negatives=3), None, pl.concat([taught(), harmless]))
    assert found is not None
    # 2.55 beside 1.90524 of the one, and beside 1.90524 + 1 / (1 + 0.4 / 3) + 1.90524 of both
    assert (found["low"], found["observed"], found["high"]) == (0.0, pytest.approx(2.55 / 4.69284, abs=1e-5), 1.0)


def test_how_it_is_known_is_said() -> None:
    check = {
        "n_queries": 1234, "n_negatives": 900, "n_held_out": 4, "expected": 0.02, "observed": 0.018,
        "low": 0.01, "high": 0.03, "max_false_negatives": 0.02,
    }  # fmt: skip
    assert (
        "1,234 questions of this table"
        in describe_estimate({"unreliable_reason": None, "holdout_validation": check})[0]
    )
    (line,) = describe_estimate({"unreliable_reason": None, "holdout_validation": check})
    assert "2.00% false negatives, found 1.80% [1.00%, 3.00%], 4 hidden positives of 900 negatives" in line
    assert (
        "found none of 900"
        in describe_estimate({"unreliable_reason": None, "holdout_validation": {**check, "n_held_out": 0}})[0]
    )
    _, beyond = describe_estimate({"unreliable_reason": None, "holdout_validation": {**check, "low": 0.021}})
    assert "more than the 2.0% that you accept" in beyond
    assert "not checked on this table" in describe_estimate({"unreliable_reason": None, "holdout_validation": None})[0]
    assert (
        "can't be told on this table: odd"
        in describe_estimate({"unreliable_reason": "odd", "holdout_validation": None})[0]
    )
    assert describe_estimate(None) == []
