"""Cells to clean texts: the stored form, quickly; lists in cells; and what makes a cell unusable."""

import json
import re

import xxhash

from stages.core.text import normalise
from stages.readers.base import Cell

LARGE_CELL_CHARS = 1_000_000
"""Characters from which a cell is counted as unusually large (it is kept whole)."""

CJK_RANGES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han as a range of a regular expression: one such character counts as a short word."""
_CJK_CHARACTER = re.compile(f"[{CJK_RANGES}]")


class UnusableRowError(Exception):
    """A row that can't be used; its text is the reason, one of a small set, as rejects.parquet has it."""


def text_digest(text: str) -> bytes:
    """xxh3-128 of a clean text, 16 bytes; in hexadecimal it is the id of a text that came without one.

    Raises `UnusableRowError` for text that was not in the file's encoding, or that holds a NUL.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise UnusableRowError("not in the encoding") from None
    if b"\0" in encoded:
        raise UnusableRowError("NUL byte")
    return xxhash.xxh3_128_digest(encoded)


def check_text(text: str) -> None:
    """Raise `UnusableRowError` for text that was not in the file's encoding, or that holds a NUL."""
    if "\0" in text or not text.isascii():
        text_digest(text)


def parse_texts(cell: Cell, separator: str | None = None) -> list[str]:
    """The texts in a cell, folded, empty ones left out: a list, a JSON array of texts, or parts between separators."""
    if not cell:
        return []
    if isinstance(cell, str):
        if separator:
            cell = cell.split(separator)
        elif cell[0] == "[" and (texts := _parse_json_texts(cell)) is not None:
            cell = texts
        else:
            text = normalise(cell)
            return [text] if text else []
    return [text for text in map(normalise, cell) if text]


def _parse_json_texts(cell: str) -> list[str] | None:
    if not cell.rstrip().endswith("]"):
        return None
    try:
        found = json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None


def parse_text(cell: Cell) -> str:
    """The one text of a cell, folded, checked for dirt; a list of several is joined by spaces."""
    if not cell:
        return ""
    text = normalise(cell if isinstance(cell, str) else " ".join(cell))
    check_text(text)
    return text


def is_long_enough(text: str) -> bool:
    """Whether a text has at least two characters, or one that is Chinese or Japanese."""
    return len(text) > 1 or bool(_CJK_CHARACTER.match(text))
