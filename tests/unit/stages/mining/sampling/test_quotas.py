"""Quotas: the shares of parts, and which survivors count for which source."""

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


def chosen(params: Params, *survivors: tuple[str, float, str]) -> list[tuple[str, str]]:
    """(doc_id, band) that one query takes of (doc_id, score, source)."""
    names = ["query_id", "doc_id", "score", "reason", "source"]
    rows = [
        ("q", d, score, "curated_negative" if source == "curated_negative" else "kept", source)
        for d, score, source in survivors
    ]
    frame = pl.DataFrame(rows, schema=names, orient="row").cast({"score": pl.Float32})
    keys = pl.DataFrame({"doc_id": [d for d, _, _ in survivors] + ["p"]}).with_row_index("text_key")
    positives = pl.DataFrame({"query_id": ["q"], "doc_id": ["p"], "score": [1.0], "text_key": [len(survivors)]})
    positives = positives.cast({"text_key": pl.UInt32})
    return (
        select_negatives(params, build_eligible_pool(frame, positives, keys, None))[0].select("doc_id", "band").rows()
    )


def test_each_source_gets_its_part():
    params = Params(num_negatives=5, source_quotas=SOURCES)
    found = chosen(
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


def test_what_several_found_counts_for_the_first_named_that_has_room():
    params = Params(num_negatives=4, source_quotas=("dense=2", "bm25=2"))
    both = [(name, 0.9 - i / 10, "bm25+dense") for i, name in enumerate("abc")]
    # a and b fill dense, c is left to bm25, beside d
    assert [d for d, _ in chosen(params, *both, ("d", 0.2, "bm25"), ("e", 0.1, "bm25"))] == ["a", "b", "c", "d"]
    # another name that only begins alike does not count
    assert chosen(params, ("a", 0.5, "dense2"), ("b", 0.4, "bm25")) == [("a", "rest"), ("b", "top")]


def test_a_source_with_too_few_leaves_its_room_to_the_others_by_score():
    params = Params(num_negatives=5, source_quotas=SOURCES)
    found = chosen(
        params,
        ("a", 0.9, "dense"),
        ("b", 0.8, "dense"),
        ("c", 0.4, "dense"),
        ("d", 0.3, "bm25"),
        ("e", 0.5, "other"),
        ("f", 0.1, "dense"),
    )
    assert found == [("a", "top"), ("b", "top"), ("e", "rest"), ("c", "rest"), ("d", "top")]


def test_curated_ones_come_before_and_leave_less():
    params = Params(num_negatives=3, source_quotas=("dense=1", "bm25=1"))
    found = chosen(params, ("x", 0.0, "curated_negative"), ("a", 0.9, "dense"), ("b", 0.8, "dense"), ("c", 0.1, "bm25"))
    assert found == [("x", "curated_negative"), ("a", "top"), ("c", "top")]


def test_parsing():
    assert parse_quotas(["dense=4", "dense12=2"]) == [("dense", 4), ("dense12", 2)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dense",), "'dense' is no NAME=PARTS"),
        (("dense=x",), "is no NAME=PARTS"),
        (("=3",), "is no NAME=PARTS"),
        (("dense=1", "dense=2"), "'dense' comes twice"),
        (("dense=0",), "at least one part"),
        (("bm52=1",), "there is no source 'bm52'"),
    ],
)
def test_what_is_no_quota_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Params(source_quotas=given)
