"""The validation on held-out positives, computed by hand."""

import polars as pl
import pytest

from stages.core import schemas
from stages.mining.explain import describe_estimate
from stages.mining.holdout_validation import validate_on_holdout
from stages.mining.params import Params
from stages.mining.risk_budget import RiskSolution
from tests.unit.stages.mining.collection import table


def make_holdout() -> pl.DataFrame:
    """One query with four positives, one of which is held out; the others score 0.9, 0.8 and 0.7."""
    rows = [("x", 1, 0.85, False, 0.1), ("h", 2, 0.84, True, 0.4), ("y", 3, 0.6, False, 0.2), ("z", 4, 0.5, False, 0.0)]
    return table(
        schemas.HOLDOUT_CANDIDATES,
        *(("q", 0, doc, rank, score, hidden, 4.0, p, 0.7, 0.9) for doc, rank, score, hidden, p in rows),
    )


def test_shares_by_hand() -> None:
    # none: the three best, x, h and y. h stands for 0.85 x 3 unlabelled positives; the other two have the weights
    # 1 / (1 + 0.1 / 3) and 1 / (1 + 0.2 / 3)
    assert validate_on_holdout(Params(mask="none", num_negatives=3), None, make_holdout()) == {
        "n_queries": 1,
        "n_negatives": 3,
        "n_held_out": 1,
        "expected": pytest.approx((0.1 * 0.96774 + 0.2 * 0.9375) / 1.90524, abs=1e-5),
        "observed": 1.0,  # 2.55 / 1.90524, at most 1
        "low": 1.0,  # every resample holds only this query
        "high": 1.0,
        "max_false_negatives": None,
    }
    # perc: at most 0.95 x 0.7; y and z
    assert validate_on_holdout(Params(mask="perc", num_negatives=3), None, make_holdout()) == {
        "n_queries": 1, "n_negatives": 2, "n_held_out": 0, "expected": pytest.approx(0.1875 / 1.9375, abs=1e-5),
        "observed": 0.0, "low": 0.0, "high": 0.0, "max_false_negatives": None,
    }  # fmt: skip
    # learned with lambda = 1: 0.85 - 0.1, 0.84 - 0.4, 0.6 - 0.2, 0.5: x and z
    limit = RiskSolution(0.02, 1.0, 1.0, 0.05, 0.5, 2)
    assert validate_on_holdout(Params(mask="learned", num_negatives=2), limit, make_holdout()) == {
        "n_queries": 1, "n_negatives": 2, "n_held_out": 0, "expected": pytest.approx(0.09677 / 1.96774, abs=1e-5),
        "observed": 0.0, "low": 0.0, "high": 0.0, "max_false_negatives": 0.02,
    }  # fmt: skip


def test_each_fold_needs_its_own_negatives() -> None:
    twice = pl.concat([make_holdout(), make_holdout().with_columns(fold=pl.lit(1, pl.Int32))])
    found = validate_on_holdout(Params(mask="none", num_negatives=2), None, twice)
    assert found is not None
    assert (found["n_queries"], found["n_negatives"], found["n_held_out"]) == (1, 4, 2)
    assert validate_on_holdout(Params(), None, make_holdout().clear()) is None


def test_candidates_above_the_maximal_p_are_not_selected() -> None:
    likely = make_holdout().with_columns(p_false_negative=pl.lit(0.51, pl.Float32))
    found = validate_on_holdout(
        Params(mask="learned", num_negatives=2), RiskSolution(0.02, 0.0, 1.0, 0.05, 0.5, 2), likely
    )
    assert found is not None
    assert (found["n_negatives"], found["n_held_out"]) == (0, 0)


def test_the_interval_resamples_queries() -> None:
    """One of two queries has a selected held-out positive; a resample may hold either of them twice."""
    harmless = make_holdout().with_columns(query_id=pl.lit("r"), held_out=pl.lit(False))
    found = validate_on_holdout(Params(mask="none", num_negatives=3), None, pl.concat([make_holdout(), harmless]))
    assert found is not None
    # 2.55 / 1.90524 for the first query alone, 2.55 / (1.90524 + 1 / (1 + 0.4 / 3) + 1.90524) for both
    assert (found["low"], found["observed"], found["high"]) == (0.0, pytest.approx(2.55 / 4.69284, abs=1e-5), 1.0)


def test_the_description_of_the_estimate() -> None:
    validation = {
        "n_queries": 1234, "n_negatives": 900, "n_held_out": 4, "expected": 0.02, "observed": 0.018,
        "low": 0.01, "high": 0.03, "max_false_negatives": 0.02,
    }  # fmt: skip

    def describe(validation: dict[str, float] | None, unreliable_reason: str | None = None) -> list[str]:
        return describe_estimate({"unreliable_reason": unreliable_reason, "holdout_validation": validation})

    (line,) = describe(validation)
    assert "1,234 questions of this table" in line
    assert "2.00% false negatives, found 1.80% [1.00%, 3.00%], 4 held-out positives of 900 negatives" in line
    assert "found none of 900" in describe({**validation, "n_held_out": 0})[0]
    _, warning = describe({**validation, "low": 0.021})
    assert "more than max_false_negatives = 2.0%" in warning
    assert "not validated on this table" in describe(None)[0]
    assert "not known on this table: odd" in describe(None, "odd")[0]
    assert describe_estimate(None) == []
