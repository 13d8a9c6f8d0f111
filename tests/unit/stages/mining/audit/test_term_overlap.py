"""IDF-weighted term overlap."""

import math

import polars as pl

from stages.mining.audit.term_overlap import IdfOverlap


def test_rare_terms_have_a_higher_weight():
    idf_overlap = IdfOverlap(["what is ague", "what is gout"])
    pairs = pl.DataFrame({"query_id": ["q", "q", "q"], "doc_id": ["a", "b", "c"]})
    texts = {"a": "Ague!", "b": "what this is", "c": "nothing"}
    common, rare = math.log(1 + 2 / 2), math.log(1 + 2 / 1)
    found = idf_overlap.compute_overlap(pairs, {"q": "What is ague?"}, texts).to_list()
    assert [round(share, 9) for share in found] == [
        round(rare / (rare + 2 * common), 9),
        round(2 * common / (rare + 2 * common), 9),
        0.0,
    ]


def test_a_query_without_terms_has_no_overlap():
    pairs = pl.DataFrame({"query_id": ["q"], "doc_id": ["a"]})
    assert IdfOverlap(["?"]).compute_overlap(pairs, {"q": "?"}, {"a": "text"}).to_list() == [0.0]
