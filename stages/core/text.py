"""Text as prep compares it: normalisation, content ids, and keys that paraphrases of a query share."""

import unicodedata

UNSPACED_SCRIPTS = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
UNSPACED_SCRIPTS += "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Scripts without spaces between words, as ranges of a regular expression: Han and kana, Thai to Burmese and Khmer, and
also Hangul, whose particles are attached to words."""


class _WordCharacterMap(dict[int, int]):
    """For `str.translate`: a character of a word is kept, any other becomes a space.

    Words are runs of letters, digits, underscores and combining marks. Without the marks, as in the `\\w` of regular
    expressions, Hindi and Thai words would be cut at their vowel signs.
    """

    def __missing__(self, code: int) -> int:
        character = chr(code)
        is_mark = code < 0x20000 and unicodedata.category(character).startswith("M")
        self[code] = mapped = code if character.isalnum() or character == "_" or is_mark else ord(" ")
        return mapped


_WORD_CHARACTER_MAP = _WordCharacterMap()


def normalise(text: str) -> str:
    """Unicode NFC with white space folded to single spaces and trimmed: the form that is stored and hashed."""
    if not text.isascii():  # ASCII is NFC already
        text = unicodedata.normalize("NFC", text)
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text  # of all white space, only the plain space is printable
    return " ".join(text.split())


def casefold_words(text: str) -> str:
    """The words of a text without case, punctuation and compatibility forms (NFKC, then casefold), joined by spaces.

    The result is empty if the text has no letter and no digit.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_WORD_CHARACTER_MAP).split())


def match_key(query: str) -> str:
    """A key that two queries share if they differ only in case, punctuation, white space or compatibility forms.

    It is `casefold_words`, or `normalise` for a query without words, so that "?" and "!" stay two queries.
    """
    return casefold_words(query) or normalise(query)
