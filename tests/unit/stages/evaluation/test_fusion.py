"""Z-scores and the choice of the weight, by hand."""

import numpy as np
import polars as pl
import pytest

from stages.evaluation.fusion import compute_z_scores, fuse_scores, select_fusion_weight


def table(*rows: tuple[str, str, int, float, float]) -> pl.DataFrame:
    """Rows of one list, dev: query, document, relevance, embedder, reranker."""
    schema = ["query_id", "doc_id", "relevance", "embedder", "reranker"]
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(list=pl.lit("dev"))


def qrels(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "relevance")


def test_z_scores_by_hand() -> None:
    found = compute_z_scores(np.array([1, 2, 3, 7, 7, 0, 4]), np.array([5, 5, 5, 2, 2, 9, 9]))
    assert found == pytest.approx([-(1.5**0.5), 0, 1.5**0.5, 0, 0, -1, 1])


def test_equal_scores_that_no_float_sums_exactly_are_level() -> None:
    assert compute_z_scores(np.full(7, 0.1, dtype=np.float32), np.zeros(7, dtype=np.int64)).tolist() == [0.0] * 7


def test_no_scores() -> None:
    assert compute_z_scores(np.zeros(0), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_fuse_by_hand() -> None:
    rows = table(
        ("q1", "a", 1, 0.0, 10.0), ("q1", "b", 0, 1.0, -10.0), ("q2", "a", 0, 5.0, 0.0), ("q2", "b", 1, 9.0, 0.0)
    )
    assert fuse_scores(rows, 0.75).to_list() == pytest.approx([0.5, -0.5, -0.25, 0.25])
    assert fuse_scores(rows, 0).to_list() == pytest.approx([-1, 1, -1, 1])
    assert fuse_scores(rows, 1).to_list() == pytest.approx([1, -1, 0, 0])


def test_the_same_query_in_two_lists_is_two_lists() -> None:
    plain = table(("q", "a", 1, 0.0, 0.0), ("q", "b", 0, 1.0, 2.0))
    forced = plain.with_columns(list=pl.lit("dev_forced"), reranker=pl.col("reranker") * 100 + 7)
    both = fuse_scores(pl.concat([plain, forced]), 1.0).to_list()
    assert both == pytest.approx([-1, 1, -1, 1])


def test_the_least_weight_that_puts_the_positive_first() -> None:
    # z is -1 and +1 by the embedder, the other way by the reranker: the positive leads where 2w - 1 > 0
    rows = table(("q", "p", 1, 0.0, 1.0), ("q", "n", 0, 1.0, 0.0))
    assert select_fusion_weight(rows, qrels(rows)) == (0.55, "dev")


def test_a_reranker_that_helps_nowhere_gets_no_weight() -> None:
    rows = table(("q", "p", 1, 1.0, 1.0), ("q", "n", 0, 0.0, 0.0))
    assert select_fusion_weight(rows, qrels(rows)) == (0.0, "dev")


def test_without_dev_the_weight_is_a_half() -> None:
    rows = table(("q", "p", 1, 1.0, 1.0))
    assert select_fusion_weight(rows.clear(), qrels(rows)) == (0.5, None)
