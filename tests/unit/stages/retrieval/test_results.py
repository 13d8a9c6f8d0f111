"""How sources are spelled, and what they found, cut by rank and by query."""

import numpy as np
import pytest
from pydantic import ValidationError

from stages.retrieval.results import CandidateSource, SearchResults, parse_sources
from stages.retrieval.stage import Params, key_extras


def test_names_and_windows() -> None:
    found = parse_sources(["dense", "dense2:50", "dense10:5-7", "bm25:10-210", " random:20 "])
    assert found == (
        CandidateSource("dense", 0, None),
        CandidateSource("dense2", 0, 50),
        CandidateSource("dense10", 5, 7),
        CandidateSource("bm25", 10, 210),
        CandidateSource("random", 0, 20),
    )
    assert [source.encoder_index for source in found] == [0, 1, 9, None, None]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["bm25"], "dense must be among the sources"),
        ([], "dense must be among the sources"),
        (["dense:1-5"], "from its first rank on"),
        (["dense", "dense:5"], "dense is given twice"),
        (["dense", "bm25:5", "bm25:7-9"], "bm25 is given twice"),
        (["dense", "bm52"], "'bm52' is no source: .* one of dense, dense2, .* bm25 and random"),
        (["dense", "dense1"], "'dense1' is no source"),
        (["dense", "dense02"], "'dense02' is no source"),
        (["dense", "bm25:"], "'bm25:' is no source"),
        (["dense", "bm25:-5"], "'bm25:-5' is no source"),
        (["dense", "bm25:0"], "'bm25:0' keeps no rank"),
        (["dense", "bm25:7-7"], "'bm25:7-7' keeps no rank"),
        (["dense", "bm25:٣"], "is no source"),
    ],
)
def test_an_invalid_source_is_an_error_that_lists_the_valid_ones(given: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_sources(given)
    with pytest.raises(ValidationError, match=says):
        Params(sources=tuple(given))


def test_top_k_is_the_default_end() -> None:
    params = Params(top_k=30, sources=("dense", "bm25:50", "random:2-4"))
    assert [(source.name, source.start, end) for source, end in params.source_depths] == [
        ("dense", 0, 30),
        ("bm25", 0, 50),
        ("random", 2, 4),
    ]


def test_the_seed_is_in_the_key_only_with_a_random_source() -> None:
    assert key_extras(Params(seed=3, sources=("dense", "bm25"))) == {}
    assert key_extras(Params(seed=3, sources=("dense", "random:2"))) == {"seed": "3"}


def test_ranks_are_places_and_windows_do_not_renumber_them() -> None:
    found = SearchResults.from_rankings([2, 0, 3], np.array([7, 5, 1, 2, 3]), np.array([9, 8, 7, 6, 5], np.float32))
    assert found.query_index.tolist() == [0, 0, 2, 2, 2]
    assert found.rank.tolist() == [1, 2, 1, 2, 3]
    assert found.rank.dtype == np.int32
    later = found.skip(1)
    assert [column.tolist() for column in later] == [[0, 2, 2], [5, 2, 3], [2, 2, 3], [8, 6, 5]]
    assert [column.tolist() for column in later.select_queries(slice(1, 3))] == [[2, 2], [2, 3], [2, 3], [6, 5]]
    assert [column.tolist() for column in found.select_queries(slice(1, 2))] == [[], [], [], []]
