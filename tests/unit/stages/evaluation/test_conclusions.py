"""The conclusions about the trained reranker follow from the interval of its difference to the embedder."""

from typing import Any

import pytest

from stages.evaluation.conclusions import classify_difference, describe_result, list_advice

Test = dict[str, float | None]
BETTER: Test = {"difference": 0.1, "low": 0.05, "high": 0.2, "p": 0.01}
WORSE: Test = {"difference": -0.1, "low": -0.2, "high": -0.05, "p": 0.01}
UNCLEAR: Test = {"difference": 0.1, "low": -0.1, "high": 0.2, "p": 0.4}
TOUCHES_ZERO: Test = {"difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.05}
TOO_FEW_GROUPS: Test = {"difference": 0.1, "low": None, "high": None, "p": None}


def metrics_with(reranker: Test, fused: Test) -> dict[str, Any]:
    tests = {"reranker": {"nDCG@10": reranker}, "fused": {"nDCG@10": fused}}
    return {
        "collapse_reason": None,
        "test": {"embedder": {}},
        "comparisons": {"test": tests},
        "base_has_new_head": True,
    }


def test_a_difference_is_clear_only_if_its_interval_leaves_out_zero() -> None:
    tests = [BETTER, WORSE, UNCLEAR, TOUCHES_ZERO, TOO_FEW_GROUPS, None]
    assert [classify_difference(test) for test in tests] == [
        *("better", "worse", "unclear", "unclear", "unknown", "unknown")
    ]


@pytest.mark.parametrize(
    ("reranker", "fused", "says"),
    [
        (BETTER, BETTER, "The trained reranker ranks better than the embedder"),
        (WORSE, BETTER, "The trained reranker ranks worse than the embedder"),
        (UNCLEAR, BETTER, "alone, it is not clearly better"),
        (TOUCHES_ZERO, TOUCHES_ZERO, "No clear difference"),
        (TOO_FEW_GROUPS, TOO_FEW_GROUPS, "too few test queries"),
    ],
)
def test_the_headline_follows_the_interval(reranker: Test, fused: Test, says: str) -> None:
    metrics = metrics_with(reranker, fused)
    assert says in describe_result(metrics)
    assert "collapsed" in describe_result(metrics | {"collapse_reason": "all scores are alike"})
    assert "no test queries" in describe_result(metrics | {"test": {}})


def test_advice_is_given_only_if_the_reranker_is_worse_alone() -> None:
    advice = list_advice(metrics_with(WORSE, UNCLEAR))
    assert len(advice) == 3
    assert "[train] base" in advice[1]
    assert len(list_advice(metrics_with(WORSE, WORSE))) == 2
    assert list_advice(metrics_with(UNCLEAR, UNCLEAR)) == []
