"""Text as prep compares it: normalisation, content ids, and a looser form for recognising restatements."""

import functools
import re
import unicodedata

import xxhash

UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
UNSPACED += "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Scripts that do not part words by spaces, as ranges of a regular expression: Han and kana, and Thai to Burmese and
Khmer; with them Hangul, whose particles cling to the word."""

UNUSUAL = r"[^ -~]|  |^ | $"
"""What a text has that `normalise` may change, as a regular expression; most English texts have none of it."""

_ASCII = str.maketrans({code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")})


def normalise(text: str) -> str:
    """Unicode NFC with white space folded to single spaces and trimmed: the form that is stored and hashed."""
    if not text.isascii():  # ASCII is NFC already
        text = unicodedata.normalize("NFC", text)
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text  # of all white space, only the plain space is printable
    return " ".join(text.split())


def text_id(text: str) -> str:
    """The id of a text that came without one: xxh3-128 of its normalised form, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(normalise(text).encode())


def loose(text: str) -> str:
    """Case, punctuation and compatibility forms taken away (NFKC, casefold, words only): for restated questions."""
    if text.isascii():  # several times faster, and the same: NFKC changes nothing, and a table finds words
        return " ".join(text.lower().translate(_ASCII).split())
    return " ".join(_words().findall(unicodedata.normalize("NFKC", text).casefold()))


@functools.cache
def _words() -> re.Pattern[str]:
    """Runs of letters, digits and combining marks; `\\w` alone would cut Hindi and Thai words at their vowel signs."""
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(rf"[\w{marks}]+")
