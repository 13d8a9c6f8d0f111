"""The metrics as text for a person."""

from stages.evaluation.tables import format_comparison, format_metrics_table

MEANS = {"nDCG@10": 0.6, "MRR@10": 0.5, "MAP@100": 0.46875, "Hit@1": 0.0, "R@3": 0.9375, "R@10": 1.0}
BETTER = {"difference": 0.3514, "low": 0.3, "high": 0.4, "p": 0.002}


def test_the_table_of_a_split() -> None:
    metrics = {
        "test": {"bm25": MEANS, "embedder": MEANS, "fused": MEANS},
        "dev": {},
        "comparisons": {"test": {"bm25": {"nDCG@10": BETTER}, "fused": {}}},
        "parameters": {"top_k": 3},
        "fusion": {"weight": 0.15},
    }
    values = ["0.600", "0.500", "0.469", "0.000", "0.938"]
    assert format_metrics_table(metrics) == [
        ["", "nDCG@10", "MRR@10", "MAP@100", "Hit@1", "R@3", "nDCG@10 against the embedder"],
        ["BM25", *values, "+0.351 [+0.300, +0.400] p = 0.002"],
        ["embedder", *values, ""],
        ["fused, weight 0.15", *values, ""],
    ]
    assert format_metrics_table(metrics, "dev") == []


def test_a_comparison_with_and_without_an_interval() -> None:
    comparison = {"difference": 0.0834, "low": 0.0514, "high": 0.1137, "p": 0.002}
    assert format_comparison(comparison) == ["+0.083", "[+0.051, +0.114]", "p = 0.002"]
    comparison = {"difference": -0.01, "low": -0.02, "high": 0.0, "p": 0.0004}
    assert format_comparison(comparison) == ["-0.010", "[-0.020, +0.000]", "p < 0.001"]
    assert format_comparison({"difference": 0.5, "low": None, "high": None, "p": None}) == ["+0.500", "too few groups"]
