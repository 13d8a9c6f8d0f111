"""Text as prep compares it."""

from stages.text import loose, normalise, text_id


def test_normalise_folds_white_space_and_composes() -> None:
    assert normalise("  Zu\u0308rich\u00a0 to\n\tGeneva ") == "Zürich to Geneva"


def test_text_id_is_of_the_normalised_text() -> None:
    assert text_id("a  b\n") == text_id("a b") == "e932d71afddc92588044f8a624582c4c"
    assert text_id("a b") != text_id("ab")


def test_loose_drops_case_punctuation_and_width() -> None:
    assert loose("  What's THE “price”?? ") == "what s the price"
    assert loose("Ｈｅｌｌｏ—Straße") == "hello strasse"


def test_loose_keeps_words_whole_whose_vowels_are_combining_marks() -> None:
    assert loose("किताब कहाँ है?") == "किताब कहाँ है"
    assert loose("ราคาเท่าไหร่") == "ราคาเท่าไหร่"
