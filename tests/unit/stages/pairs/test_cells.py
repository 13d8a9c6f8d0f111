"""Cells to clean texts."""

import pytest

from stages.core.text import text_id
from stages.pairs.cells import Unusable, check, digest, long_enough, single, values


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
