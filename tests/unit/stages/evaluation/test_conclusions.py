"""The verdict follows from the interval of the difference to the embedder, and says what can't be known."""

from typing import Any

import pytest

from stages.evaluation.conclusions import (
    build_verdict,
    classify_difference,
    compute_smallest_difference,
    describe_publication,
    select_challenger,
)

Test = dict[str, float | None]
BETTER: Test = {"difference": 0.1, "low": 0.05, "high": 0.2, "p": 0.01}
WORSE: Test = {"difference": -0.1, "low": -0.2, "high": -0.05, "p": 0.01}
UNCLEAR: Test = {"difference": 0.1, "low": -0.1, "high": 0.2, "p": 0.4}
TOUCHES_ZERO: Test = {"difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.05}
EQUAL: Test = {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
TOO_FEW_GROUPS: Test = {"difference": 0.1, "low": None, "high": None, "p": None}


def metrics_with(
    reranker: Test, fused: Test, n_queries: int = 64, n_groups: int = 60, **others: Test
) -> dict[str, Any]:
    tests = {**others, "reranker": reranker, "fused": fused}
    scores = {name: {"nDCG@10": 0.5 + (test["difference"] or 0)} for name, test in tests.items()}
    return {
        "collapse_reason": None,
        "test": {"embedder": {"nDCG@10": 0.5}, **scores},
        "comparisons": {"test": {name: {"nDCG@10": test} for name, test in tests.items()}},
        "candidate_lists": {"test": {"n_queries": n_queries, "n_groups": n_groups}},
        "base_has_new_head": True,
    }


def without_queries() -> dict[str, Any]:
    return metrics_with(BETTER, BETTER, 0, 0) | {"test": {}, "comparisons": {"test": {}}}


def words(metrics: dict[str, Any]) -> str:
    return " ".join(build_verdict(metrics)["reasons"])


def test_a_difference_is_clear_only_if_its_interval_leaves_out_zero() -> None:
    tests = [BETTER, WORSE, UNCLEAR, TOUCHES_ZERO, TOO_FEW_GROUPS, None]
    assert [classify_difference(test) for test in tests] == [
        *("better", "worse", "unclear", "unclear", "unknown", "unknown")
    ]


def test_the_numbers_are_those_of_the_best_system_by_hand() -> None:
    metrics = metrics_with(WORSE, BETTER | {"difference": 0.04}, bm25=BETTER | {"low": 0.03, "high": 0.17})
    verdict = build_verdict(metrics)
    numbers = {name: value for name, value in verdict.items() if name not in ("reasons", "advice")}
    assert numbers == {
        "winner": "bm25",
        "baseline": "embedder",
        "challenger": "bm25",
        "metric": "nDCG@10",
        "difference": 0.1,
        "low": 0.03,
        "high": 0.17,
        "p": 0.01,
        "queries": 64,
        "groups": 60,
        "smallest_difference": 0.07,  # (0.17 - 0.03) / 2
        "queries_for_half": 256,
        "published": "embedder",
    }
    assert "Best on test is the row BM25: nDCG@10 +0.100 [+0.030, +0.170] against the embedder." in verdict["reasons"]
    assert (
        "64 test queries in 60 groups can show differences in nDCG@10 from about 0.070 on; half of that takes about "
        "256 queries in 240 groups."
    ) in verdict["reasons"]


def test_the_baseline_wins_unless_the_best_system_is_clearly_better() -> None:
    assert build_verdict(metrics_with(BETTER, UNCLEAR | {"difference": 0.09}))["winner"] == "reranker"
    unclear = build_verdict(metrics_with(UNCLEAR, WORSE))
    assert (unclear["winner"], unclear["challenger"], unclear["published"]) == ("embedder", "reranker", "reranker")
    worse = build_verdict(metrics_with(WORSE, WORSE | {"difference": -0.2}))
    assert (worse["winner"], worse["challenger"], worse["published"]) == ("embedder", "reranker", "embedder")


def test_a_fusion_that_is_the_embedder_is_no_challenger() -> None:
    scores = {"embedder": 0.5, "reranker": 0.4, "fused": 0.5}
    tests = {"reranker": {"nDCG@10": WORSE}, "fused": {"nDCG@10": EQUAL}}
    assert select_challenger(scores, tests) == "reranker"
    assert select_challenger(scores, {"fused": tests["fused"]}) == "fused"
    assert select_challenger({"embedder": 0.5}, {}) is None
    verdict = build_verdict(metrics_with(EQUAL, EQUAL))
    assert (verdict["difference"], verdict["smallest_difference"], verdict["queries_for_half"]) == (0.0, None, None)


def test_the_smallest_difference_is_half_the_interval() -> None:
    assert compute_smallest_difference(-0.073, 0.045) == 0.059
    assert compute_smallest_difference(0.5, 0.5) is None
    assert compute_smallest_difference(None, None) is None


@pytest.mark.parametrize(
    ("reranker", "fused", "says"),
    [
        (BETTER, BETTER, "The trained reranker ranks better than the embedder."),
        (WORSE, BETTER, "The trained reranker ranks worse than the embedder."),
        (UNCLEAR, BETTER, "alone, it is not clearly better"),
        (TOUCHES_ZERO, TOUCHES_ZERO, "No clear difference"),
        (TOO_FEW_GROUPS, TOO_FEW_GROUPS, "too few test queries"),
    ],
)
def test_the_first_reason_follows_the_interval(reranker: Test, fused: Test, says: str) -> None:
    metrics = metrics_with(reranker, fused)
    assert says in build_verdict(metrics)["reasons"][0]
    collapsed = build_verdict(metrics | {"collapse_reason": "all scores are alike"})
    assert "collapsed" in collapsed["reasons"][0]
    assert collapsed["published"] == "embedder"


def test_no_test_queries_and_too_few_groups_are_words_and_not_numbers() -> None:
    unknown = ("winner", "low", "high", "p", "smallest_difference", "queries_for_half")
    nothing, few = build_verdict(without_queries()), build_verdict(metrics_with(TOO_FEW_GROUPS, TOO_FEW_GROUPS, 15, 1))
    for verdict in (nothing, few):
        assert {verdict[name] for name in unknown} == {None}  # type: ignore[literal-required]
        assert verdict["published"] == "reranker"
        assert "test_ratio" in verdict["advice"][0]
    assert (nothing["challenger"], nothing["difference"], nothing["queries"]) == (None, None, 0)
    assert "no test queries" in words(without_queries())
    assert (few["challenger"], few["difference"], few["queries"], few["groups"]) == ("reranker", 0.1, 15, 1)
    assert "With 15 test queries in 1 group no difference" in few["reasons"][1]
    assert "With 1 test query in 1 group no" in words(metrics_with(TOO_FEW_GROUPS, TOO_FEW_GROUPS, 1, 1))


def test_what_is_published_is_said_with_its_reason() -> None:
    worse, unclear = build_verdict(metrics_with(WORSE, WORSE)), build_verdict(metrics_with(UNCLEAR, WORSE))
    assert "without a reranker: the trained one ranks worse" in describe_publication(worse, "embedder")
    assert "by --force, though it ranks worse than the embedder" in describe_publication(worse, "reranker")
    assert "nothing shows that it ranks worse" in describe_publication(unclear, "reranker")
    assert "nobody knows" in describe_publication(build_verdict(without_queries()), "reranker")


def test_advice_is_given_only_if_the_reranker_is_worse_alone() -> None:
    advice = build_verdict(metrics_with(WORSE, UNCLEAR))["advice"]
    assert len(advice) == 3
    assert "[train] base" in advice[1]
    assert len(build_verdict(metrics_with(WORSE, WORSE))["advice"]) == 2
    assert build_verdict(metrics_with(UNCLEAR, UNCLEAR))["advice"] == []
