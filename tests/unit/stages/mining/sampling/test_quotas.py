"""Quotas: the shares of the sources, and which candidates count for which source."""

import polars as pl
import pytest
from pydantic import ValidationError

from stages.mining.sampling.quotas import apportion, parse_quotas
from stages.mining.sampling.sampler import select_negatives
from stages.mining.sampling.stage import Params
from stages.mining.sampling.strategies import build_eligible_pool

SOURCES = ("dense=2", "bm25=2", "random=1")


@pytest.mark.parametrize(
    ("total", "parts", "expected"),
    [
        (7, (3, 2, 2), [3, 2, 2]),
        (14, (3, 2, 2), [6, 4, 4]),
        (10, (3, 2, 2), [4, 3, 3]),  # 4.29, 2.86, 2.86: the two larger remainders get the unit
        (1, (1, 1, 1), [1, 0, 0]),
        (5, (0, 1, 0), [0, 5, 0]),
        (0, (3, 2, 2), [0, 0, 0]),
    ],
)
def test_shares_by_largest_remainder(total, parts, expected):
    assert apportion(total, parts) == expected


def select(params: Params, *survivors: tuple[str, float, str]) -> list[tuple[str, str]]:
    """The (doc_id, stratum) that one query selects from (doc_id, score, source)."""
    names = ["query_id", "doc_id", "score", "reason", "source"]
    rows = [
        ("q", d, score, "curated_negative" if source == "curated_negative" else "kept", source)
        for d, score, source in survivors
    ]
    frame = pl.DataFrame(rows, schema=names, orient="row").cast({"score": pl.Float32})
    keys = pl.DataFrame({"doc_id": [d for d, _, _ in survivors] + ["p"]}).with_row_index("cluster")
    positives = pl.DataFrame({"query_id": ["q"], "doc_id": ["p"], "score": [1.0], "cluster": [len(survivors)]})
    positives = positives.cast({"cluster": pl.UInt32})
    pool = build_eligible_pool(frame, positives, keys, None)
    return select_negatives(params, pool)[0].select("doc_id", "stratum").rows()


def test_each_source_gets_its_part():
    params = Params(num_negatives=5, source_quotas=SOURCES)
    found = select(
        params,
        ("a", 0.9, "dense"),
        ("b", 0.8, "dense"),
        ("c", 0.7, "dense"),
        ("d", 0.3, "bm25"),
        ("e", 0.2, "bm25"),
        ("f", 0.1, "random"),
        ("g", 0.05, "random"),
    )
    assert found == [("a", "top"), ("b", "top"), ("d", "top"), ("e", "top"), ("f", "top")]


def test_a_candidate_of_several_sources_counts_for_the_first_unfilled_one():
    params = Params(num_negatives=4, source_quotas=("dense=2", "bm25=2"))
    both = [(name, 0.9 - i / 10, "bm25+dense") for i, name in enumerate("abc")]
    # a and b fill dense; c and d fill bm25
    assert [d for d, _ in select(params, *both, ("d", 0.2, "bm25"), ("e", 0.1, "bm25"))] == ["a", "b", "c", "d"]
    # dense2 is another source than dense
    assert select(params, ("a", 0.5, "dense2"), ("b", 0.4, "bm25")) == [("a", "rest"), ("b", "top")]


def test_what_a_source_can_t_fill_goes_to_the_others_by_score():
    params = Params(num_negatives=5, source_quotas=SOURCES)
    found = select(
        params,
        ("a", 0.9, "dense"),
        ("b", 0.8, "dense"),
        ("c", 0.4, "dense"),
        ("d", 0.3, "bm25"),
        ("e", 0.5, "other"),
        ("f", 0.1, "dense"),
    )
    assert found == [("a", "top"), ("b", "top"), ("e", "rest"), ("c", "rest"), ("d", "top")]


def test_curated_negatives_reduce_the_quotas():
    params = Params(num_negatives=3, source_quotas=("dense=1", "bm25=1"))
    found = select(params, ("x", 0.0, "curated_negative"), ("a", 0.9, "dense"), ("b", 0.8, "dense"), ("c", 0.1, "bm25"))
    assert found == [("x", "curated_negative"), ("a", "top"), ("c", "top")]


def test_parsing():
    assert parse_quotas(["dense=4", "dense12=2"]) == [("dense", 4), ("dense12", 2)]


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        (("dense",), "'dense' .* NAME=PARTS"),
        (("dense=x",), "NAME=PARTS"),
        (("=3",), "NAME=PARTS"),
        (("dense=1", "dense=2"), "'dense' is given twice"),
        (("dense=0",), "at least one part"),
        (("bm52=1",), "there is no source 'bm52'"),
    ],
)
def test_an_invalid_quota_is_an_error(quotas, message):
    with pytest.raises(ValidationError, match=message):
        Params(source_quotas=quotas)
