"""Cells to clean texts."""

import pytest

from stages.pairs.cells import UnusableRowError, check_text, is_long_enough, parse_text, parse_texts, text_digest


def test_digest_is_the_one_that_ids_were_made_of_so_far() -> None:
    assert text_digest("a b").hex() == "e932d71afddc92588044f8a624582c4c"


@pytest.mark.parametrize("text, reason", [("a\0b", "NUL byte"), ("caf\udce9", "not in the encoding")])
def test_dirt_has_a_reason(text: str, reason: str) -> None:
    for use in (check_text, text_digest, parse_text):
        with pytest.raises(UnusableRowError, match=reason):
            use(text)


def test_values_of_a_cell() -> None:
    assert parse_texts(None) == parse_texts("  ") == parse_texts([]) == []
    assert parse_texts(" one  text ") == ["one text"]
    assert parse_texts(["a", " ", "b"]) == ["a", "b"]
    assert parse_texts('["a", "b  c"]') == ["a", "b c"]
    assert parse_texts("[1] see the note") == ["[1] see the note"]
    assert parse_texts("[1, 2]") == ["[1, 2]"]
    assert parse_texts("[broken]") == ["[broken]"]
    assert parse_texts("a ||| b", "|||") == ["a", "b"]


def test_one_character_is_too_short_unless_it_is_han() -> None:
    assert not is_long_enough("")
    assert not is_long_enough("a")
    assert is_long_enough("ab")
    assert is_long_enough("是")
