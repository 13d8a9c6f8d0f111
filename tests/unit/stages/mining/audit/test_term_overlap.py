"""How much of what is particular to a question a document holds."""

import math

import polars as pl

from stages.mining.audit.term_overlap import IdfOverlap


def test_rare_words_weigh_more():
    telling = IdfOverlap(["what is ague", "what is gout"])
    pairs = pl.DataFrame({"query_id": ["q", "q", "q"], "doc_id": ["a", "b", "c"]})
    texts = {"a": "Ague!", "b": "what this is", "c": "nothing"}
    common, rare = math.log(1 + 2 / 2), math.log(1 + 2 / 1)
    found = telling.compute_overlap(pairs, {"q": "What is ague?"}, texts).to_list()
    assert [round(share, 9) for share in found] == [
        round(rare / (rare + 2 * common), 9),
        round(2 * common / (rare + 2 * common), 9),
        0.0,
    ]


def test_a_question_without_words_is_held_by_nothing():
    pairs = pl.DataFrame({"query_id": ["q"], "doc_id": ["a"]})
    assert IdfOverlap(["?"]).compute_overlap(pairs, {"q": "?"}, {"a": "text"}).to_list() == [0.0]
