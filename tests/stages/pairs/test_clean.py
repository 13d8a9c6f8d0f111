"""Cells to clean texts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.pairs.clean import Unusable, check, digest, fold, long_enough, single, values
from stages.pairs.textstore import loose_bytes
from stages.text import loose, normalise, text_id

TEXTS = st.one_of(st.text(), st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2003\u3000ab_-.éé"))


@given(TEXTS)
@example("a\u0301  b\u3000")
def test_fold_is_normalise(text: str) -> None:
    assert fold(text) == normalise(text)


@given(TEXTS)
@example("What's C++ -- _x_?")
def test_loose_bytes_is_loose(text: str) -> None:
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert loose_bytes(text) == loose(text).encode()


def test_digest_is_the_text_id() -> None:
    assert digest("Where is it?").hex() == text_id("  Where  is it? ")


@pytest.mark.parametrize("text, reason", [("a\0b", "NUL byte"), ("caf\udce9", "not in the encoding")])
def test_dirt_has_a_reason(text: str, reason: str) -> None:
    for use in (check, digest, single):
        with pytest.raises(Unusable, match=reason):
            use(text)


def test_values_of_a_cell() -> None:
    assert values(None) == values("  ") == values([]) == []
    assert values(" one  text ") == ["one text"]
    assert values(["a", " ", "b"]) == ["a", "b"]
    assert values('["a", "b  c"]') == ["a", "b c"]
    assert values("[1] see the note") == ["[1] see the note"]
    assert values("[1, 2]") == ["[1, 2]"]
    assert values("[broken]") == ["[broken]"]
    assert values("a ||| b", "|||") == ["a", "b"]


def test_han_characters_count_twice() -> None:
    assert not long_enough("a", 2)
    assert long_enough("ab", 2)
    assert long_enough("是", 2)
    assert not long_enough("是", 3)
