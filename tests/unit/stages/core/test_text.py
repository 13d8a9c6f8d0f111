"""Text as prep compares it."""

import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from stages.core.text import casefold_words, match_key, normalise


def test_normalise_folds_white_space_and_composes() -> None:
    assert normalise("  Zu\u0308rich\u00a0 to\n\tGeneva ") == "Zürich to Geneva"


def test_casefold_words_drops_case_punctuation_and_width() -> None:
    assert casefold_words("  What's THE “price”?? ") == "what s the price"
    assert casefold_words("Ｈｅｌｌｏ—Straße") == "hello strasse"


def test_casefold_words_keeps_words_whole_whose_vowels_are_combining_marks() -> None:
    assert casefold_words("किताब कहाँ है?") == "किताब कहाँ है"
    assert casefold_words("ราคาเท่าไหร่") == "ราคาเท่าไหร่"


@given(st.one_of(st.text(), st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2003\u3000ab_-.éé")))
@example("a\u0301  b\u3000")
def test_normalise_folds_all_white_space(text: str) -> None:
    assert normalise(text) == re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


MARKS = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M"))


@given(st.one_of(st.text(), st.text(alphabet=" \t\n\x0b\x1c\x1f\x7f\xa0ABab_-.'09éßǅﬁ²½की\u0e35\u0301\U000e0100")))
@example("What's C++ -- _x_?")
@example("किताब कहाँ है?")
def test_casefold_words_are_the_words_of_the_folded_text(text: str) -> None:
    words = re.findall(rf"[\w{MARKS}]+", unicodedata.normalize("NFKC", text).casefold())
    assert casefold_words(text) == " ".join(words)


def test_a_match_key_ignores_case_and_punctuation_and_is_never_empty_for_a_text() -> None:
    assert match_key("What's new?") == match_key("what S new") == "what s new"
    assert match_key(" ?!  ") == "?!"
    assert match_key("?") != match_key("!")
