"""Calibrate by hand: what is expected of what would be written, and how sure that is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.bench.calibration import compute_tradeoffs, summarise_selection
from stages.core import schemas
from stages.mining.holdout_validation import validate_on_holdout
from stages.mining.params import Params
from stages.mining.risk_budget import PaddedCandidates
from tests.unit.stages.mining.collection import table, write
from tests.unit.stages.mining.test_holdout_validation import make_holdout


def lists(score: list[list[float]], p: list[list[float]], quota: int) -> PaddedCandidates:
    """All of these candidates, a row a query."""
    there = np.array(score, np.float32)
    return PaddedCandidates(there, np.array(p, np.float32), np.ones(there.shape, np.bool_), np.full(len(there), quota))


def test_the_expected_share_hardness_and_fill() -> None:
    two = lists([[0.9, 0.8, 0.1], [0.7, 0.5, 0.3]], [[0.3, 0.1, 0.9], [0.2, 0.9, 0.9]], quota=2)
    found = summarise_selection(two, np.array([[True, True, False], [True, False, False]]))
    assert found["expected"] == pytest.approx((0.3 + 0.1 + 0.2) / 3)  # of negatives, not the mean over queries
    assert found["hardness"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert found["fill"] == pytest.approx(3 / 4)
    # questions are drawn with replacement: two of the first, one of each, or two of the second
    assert found["low"] == pytest.approx(0.2)
    assert found["high"] == pytest.approx(0.2)
    other = summarise_selection(two, np.array([[True, False, False], [False, True, False]]))
    assert (other["low"], other["high"]) == (pytest.approx(0.3), pytest.approx(0.9))
    assert other["expected"] == pytest.approx(0.6)


def test_the_interval_is_that_of_a_mean_over_questions() -> None:
    # half of 400 questions have one of p 0.2, the others one of 0: a deviation of 0.1 a question, 0.005 in the mean
    many = lists([[0.5]] * 400, [[0.2], [0.0]] * 200, quota=1)
    found = summarise_selection(many, np.ones((400, 1), np.bool_))
    assert found["expected"] == pytest.approx(0.1)
    assert found["low"] == pytest.approx(0.1 - 1.96 * 0.005, abs=0.0015)
    assert found["high"] == pytest.approx(0.1 + 1.96 * 0.005, abs=0.0015)
    # twice as many negatives that share their questions' luck tell no more
    paired = lists([[0.5, 0.5]] * 400, [[0.2, 0.2], [0.0, 0.0]] * 200, quota=2)
    assert summarise_selection(paired, np.ones((400, 2), np.bool_)) == found


def test_an_empty_selection_has_no_expected_rate() -> None:
    one = lists([[0.9]], [[0.3]], quota=7)
    nothing = {"expected": None, "low": None, "high": None, "hardness": None, "fill": 0.0}
    assert summarise_selection(one, np.array([[False]])) == nothing


def test_each_row_has_the_validation_on_held_out_positives(tmp_path: Path) -> None:
    known = {"query_id": "q", "source": "dense", "verdict": "negative", "reason": "kept"}
    listed = (("x", 1, 0.85), ("z", 2, 0.5))
    rows = [known | {"doc_id": d, "rank": r, "score": s, "p_false_negative": 0.1} for d, r, s in listed]
    verdicts = pl.DataFrame(
        [dict.fromkeys(schemas.VERDICTS.names) | row for row in rows],
        schema=pl.DataFrame(pl.from_arrow(schemas.VERDICTS.empty_table())).schema,
    )
    inputs = write(
        tmp_path,
        queries=table(schemas.QUERIES, ("q", "a question", "train", "q")),
        qrels_scored=table(schemas.QRELS_SCORED, ("q", "p", 1, 0.9)),
        verdicts=verdicts,
        holdout_verified=make_holdout(),
    )
    found = compute_tradeoffs({**inputs, "holdout_candidates": inputs["holdout_verified"]}, Params(num_negatives=3))
    checks = {row["rule"]: row["holdout_validation"] for row in found["rules"]}
    assert checks["naive"] == validate_on_holdout(Params(mask="none", num_negatives=3), None, make_holdout())
    assert checks["perc 0.95"] == validate_on_holdout(Params(mask="perc", num_negatives=3), None, make_holdout())
    assert checks["range_min 10"] is None  # its ranks are others than those that are known of what was hidden
    assert [row["holdout_validation"]["max_false_negatives"] for row in found["budgets"]] == [
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
    ]
