"""SegmentHashes of the clauses of many texts at once, from their bytes: what a search for equal passages begins with.

A hash is that of the letters and digits of a segment, without case, spaces and punctuation: the sum over its bytes of
byte x base^position, modulo 2^64 (Karp and Rabin 1987). SegmentHashes of all segments follow from one running sum.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.core.arrays import Ints

SegmentHashes = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
_MARKUP_PATTERN = r"</?[a-zA-Z][^<>]{0,500}>|&(?:nbsp|amp|lt|gt|quot|#\d+);"
_NOT_ASCII = r"[^\x00-\x7f]"
_OTHER_PUNCTUATION = r"[^\p{L}\p{N}\p{M}\x00-\x7f]+"
_ENDS_CLAUSE = np.zeros(256, np.bool_)
_ENDS_CLAUSE[list(b".,;:!?\n|")] = True
_LETTER = np.zeros(256, np.uint8)
for _code in range(128):
    if chr(_code).isalnum():
        _LETTER[_code] = ord(chr(_code).lower())
_LETTER[128:] = np.arange(128, 256)
_IS_MARKUP = np.zeros(256, np.bool_)
_IS_MARKUP[list(b"<&")] = True
_PART_BYTES = 1 << 18


class ClauseHashes(NamedTuple):
    """The clauses of some texts, those without a letter or digit left out; sizes are bytes of letters and digits."""

    document: Ints
    """[n]: the text that a clause is in."""
    position: Ints
    """[n]: its place in the text."""
    size: Ints
    """[n]"""
    hash: SegmentHashes
    """[n]"""
    document_size: Ints
    """[texts]"""
    document_hash: SegmentHashes
    """[texts]: the hash of all of a text; texts of the same words have the same."""


_NO_INTS, _NO_HASHES = np.empty(0, np.int64), np.empty(0, np.uint64)
_EMPTY = ClauseHashes(_NO_INTS, _NO_INTS, _NO_INTS, _NO_HASHES, _NO_INTS, _NO_HASHES)


def hash_clauses(texts: pl.Series) -> ClauseHashes:
    """The hashes of texts without nulls and of their clauses. Markup is left out; other scripts' punctuation ends a
    clause as a full stop does."""
    return concat_clauses([_hash_part(part) for part in _split_by_size(texts)])


def concat_clauses(parts: Sequence[ClauseHashes]) -> ClauseHashes:
    """The clauses of all texts of several parts, which are numbered on."""
    n_before = np.cumsum([0, *(len(part.document_size) for part in parts)])
    numbered = [part._replace(document=part.document + n) for part, n in zip(parts, n_before[:-1], strict=True)]
    return ClauseHashes(*(np.concatenate(arrays) for arrays in zip(_EMPTY, *numbered, strict=True)))


def fold_punctuation(texts: pl.Series) -> pl.Series:
    """The texts without markup; of those that are not ASCII NFKC, in lower case, with full stops for punctuation."""
    texts = texts.clone()  # `scatter` writes into its series
    has_markup = texts.str.contains("<", literal=True) | texts.str.contains("&", literal=True)
    if has_markup.any():
        texts = texts.scatter(has_markup.arg_true(), texts.filter(has_markup).str.replace_all(_MARKUP_PATTERN, " "))
    is_other = texts.str.contains(_NOT_ASCII)
    if is_other.any():
        plain = texts.filter(is_other).str.normalize("NFKC").str.to_lowercase().str.replace_all(_OTHER_PUNCTUATION, ".")
        texts = texts.scatter(is_other.arg_true(), plain)
    return texts


def _split_by_size(texts: pl.Series) -> Iterator[pl.Series]:
    """The texts in parts that the processor's cache holds."""
    ends = np.cumsum(texts.str.len_bytes().cast(pl.Int64).to_numpy())
    cuts = np.searchsorted(ends, np.arange(_PART_BYTES, int(ends[-1]) if len(ends) else 0, _PART_BYTES))
    for start, stop in pairwise(np.unique([0, *cuts.tolist(), len(texts)]).tolist()):
        yield texts.slice(start, stop - start)


def _hash_part(texts: pl.Series) -> ClauseHashes:
    data, starts = _read_bytes(texts)
    if len(data) and (data.max() >= 128 or _IS_MARKUP[data].any()):
        data, starts = _read_bytes(fold_punctuation(texts))
    letters = _LETTER[data]
    cuts = np.union1d(starts[starts < len(data)], np.flatnonzero(_ENDS_CLAUSE[data]))
    if not len(cuts):
        return _EMPTY._replace(
            document_size=np.zeros(len(texts), np.int64), document_hash=np.zeros(len(texts), np.uint64)
        )
    size = np.add.reduceat(letters != 0, cuts, dtype=np.int64)
    letters = letters[letters != 0]
    first = np.cumsum(size) - size
    is_clause = size > 0
    document = (np.searchsorted(starts, cuts, side="right") - 1)[is_clause]
    size, first = size[is_clause], first[is_clause]
    # a part is larger than _PART_BYTES only if it is one long text
    powers, inverse_powers = _list_powers(1 << max(len(letters), 2 * _PART_BYTES).bit_length())
    sums = np.add.reduceat(letters * powers[: len(letters)], first) if len(first) else np.empty(0, np.uint64)
    n_clauses = np.bincount(document, minlength=len(texts))
    first_clause = np.cumsum(n_clauses) - n_clauses
    document_size, document_hash = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.uint64)
    has_clause = n_clauses > 0
    starts_of = first_clause[has_clause]
    if len(starts_of):
        document_size[has_clause] = np.add.reduceat(size, starts_of)
        document_hash[has_clause] = np.add.reduceat(sums, starts_of) * inverse_powers[first[starts_of]]
    position = np.arange(len(document)) - first_clause[document]
    return ClauseHashes(document, position, size, sums * inverse_powers[first], document_size, document_hash)


def _read_bytes(texts: pl.Series) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], Ints]:
    """The bytes of all texts one after another, and where each begins."""
    array = texts.rechunk().to_arrow()
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, len(array) + 1, 8 * array.offset)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]] if data_buffer else np.empty(0, np.uint8)
    return data, offsets[:-1] - offsets[0]


@cache
def _list_powers(n: int) -> tuple[SegmentHashes, SegmentHashes]:
    """The first n powers of the base and of its inverse."""
    inverse = pow(_BASE, -1, 1 << 64)
    powers, inverse_powers = (np.full(n, base, np.uint64) for base in (_BASE, inverse))
    powers[0] = inverse_powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64), np.cumprod(inverse_powers, dtype=np.uint64)
