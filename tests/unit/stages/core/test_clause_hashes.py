"""Hashes of clauses: by literal texts, and against a slow computation."""

import re

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from stages.core.clause_hashes import concat_clauses, fold_punctuation, hash_clauses

BASE = 0x9E3779B97F4A7C15


def hash_slowly(segment: str) -> int:
    letters = [ord(c.lower()) for c in segment if c.isalnum()]
    return sum(code * pow(BASE, place, 1 << 64) for place, code in enumerate(letters)) % (1 << 64)


def test_clauses_by_hand() -> None:
    found = hash_clauses(pl.Series(["Hello, World. x", "", "<p>Hello</p>, world!", "..."]))
    assert found.document.tolist() == [0, 0, 0, 2, 2]
    assert found.position.tolist() == [0, 1, 2, 0, 1]
    assert found.size.tolist() == [5, 5, 1, 5, 5]
    assert found.hash[:2].tolist() == found.hash[3:].tolist() == [hash_slowly("hello"), hash_slowly("world")]
    assert found.document_size.tolist() == [11, 0, 10, 0]
    assert found.document_hash.tolist() == [hash_slowly("helloworldx"), 0, hash_slowly("helloworld"), 0]


def test_other_scripts_end_clauses_too() -> None:
    one, other = hash_clauses(pl.Series(["请打开。选择安全！"])), hash_clauses(pl.Series(["请打开.选择安全"]))
    assert one.position.tolist() == [0, 1]
    assert one.hash.tolist() == other.hash.tolist()


def test_the_texts_that_are_given_stay_as_they_are() -> None:
    texts = pl.Series(["<b>Hi</b>", "“yes”", "plain"])
    assert fold_punctuation(texts).to_list() == [" Hi ", ".yes.", "plain"]
    assert texts.to_list() == ["<b>Hi</b>", "“yes”", "plain"]


TEXT = st.text(st.sampled_from("aB9 .,;\n-"), max_size=30)


@given(st.lists(TEXT, max_size=12), st.integers(0, 12))
def test_against_a_slow_computation_in_any_parts(texts: list[str], cut: int) -> None:
    series = pl.Series(texts, dtype=pl.String)
    expected = [
        (document, hash_slowly(clause))
        for document, text in enumerate(texts)
        for clause in re.split(r"[.,;:!?\n|]", text)
        if any(c.isalnum() for c in clause)
    ]
    found = hash_clauses(series)
    assert list(zip(found.document.tolist(), found.hash.tolist(), strict=True)) == expected
    assert found.document_hash.tolist() == [hash_slowly(text) for text in texts]
    parts = concat_clauses([hash_clauses(series[:cut]), hash_clauses(series[cut:])])
    assert all(np.array_equal(a, b) for a, b in zip(parts, found, strict=True))


def test_a_text_longer_than_a_part() -> None:
    text = "word " * 2_000_000
    found = hash_clauses(pl.Series([text, "a", text]))
    assert found.size.tolist() == [8_000_000, 1, 8_000_000]
    assert found.hash[0] == found.hash[2] != 0
