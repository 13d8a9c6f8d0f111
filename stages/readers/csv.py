"""CSV and TSV: every cell stays the text that it is ("007" stays "007"); broken rows are set aside."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.readers.base import BATCH_CHARS, BATCH_ROWS, Batch, Cell, Rejected
from stages.readers.text_encoding import open_text

CELL_LIMIT = 256 << 20
_LINES_LIMIT = 10_000
_LINE_END = re.compile(r"\r\n|\r|\n")
_END = "\0prep: end of file\0"
"""Fed to the parser as a last line: where it turns up inside a cell, a quote was never closed."""


def read_delimited(
    path: Path, label: str, encoding: str | None = None, delimiter: str | None = None
) -> Iterator[Batch]:
    """Read a delimited file in batches. Row numbers count data rows from 1 (the header is row 0, blank lines are none).

    Without `delimiter`, the header decides between comma, semicolon, tab and bar. A row with more or fewer cells than
    the header is rejected as "ragged row" (empty cells past the last column do no harm).
    Raises `InputError` for an empty file, or a quote that opens and does not close.
    """
    with open_text(path, encoding) as text:
        first = _first_line(text)
        if not first:
            raise InputError(f"{label}: the file is empty. A table needs a header line and at least one row.")
        delimiter = delimiter or sniff_delimiter(first)
        csv.field_size_limit(CELL_LIMIT)
        reader = csv.reader(itertools.chain([first], text, [_END]), delimiter=delimiter)
        yield from _batches(reader, label)


def _first_line(text: Iterator[str]) -> str:
    return next((line for line in text if line.strip("\ufeff \t\r\n")), "")


def sniff_delimiter(header: str) -> str:
    """The delimiter that cuts a header line into the most cells; the comma where none cuts it."""
    return max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _batches(reader: Any, label: str) -> Iterator[Batch]:
    header: list[str] | None = None
    number, size = 0, 0
    kept: list[list[str]] = []
    numbers: list[int] = []
    rejected: list[Rejected] = []
    while True:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise _open_quote(label, before + 1, f"({error})") from error
        if reader.line_num - before > 1:
            if _END in row[-1]:
                raise _open_quote(label, before + 1, "before the end of the file")
            if reader.line_num - before > _LINES_LIMIT:
                raise _open_quote(label, _opening_line(row, before + 1), f"within {_LINES_LIMIT:,} lines")
        if not row or row == [_END]:
            continue
        if header is None:
            header = _header(row)
            continue
        number += 1
        if len(row) != len(header):
            row, extra = row[: len(header)], row[len(header) :]
            if len(row) < len(header) or any(extra):
                data = dict(zip(header, row, strict=False)) | ({"": extra} if extra else {})
                rejected.append(Rejected(number, "ragged row", data))
                size += 1000
                continue
        kept.append(row)
        numbers.append(number)
        size += sum(map(len, row))
        if size >= BATCH_CHARS or len(kept) >= BATCH_ROWS:
            yield _batch(header, numbers, kept, rejected)
            kept, numbers, rejected, size = [], [], [], 0
    if header is not None:  # a header without rows still says which columns there are
        yield _batch(header, numbers, kept, rejected)


def _header(row: list[str]) -> list[str]:
    """Column names, trimmed; a repeated name gets its number, so that it can't hide the first."""
    names: list[str] = []
    for cell in row:
        name = cell.strip().lstrip("\ufeff")
        names.append(f"{name} ({names.count(name) + 1})" if name in names else name)
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _batch(header: list[str], numbers: list[int], rows: list[list[str]], rejected: list[Rejected]) -> Batch:
    columns: dict[str, list[Cell]] = {name: [] for name in header}
    if rows:
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return Batch(numbers, columns, rejected)


def _opening_line(row: list[str], line: int) -> int:
    """The line on which the longest of a record's cells begins."""
    lengths = [len(_LINE_END.findall(cell)) for cell in row]
    longest = max(range(len(row)), key=lengths.__getitem__)
    return line + sum(lengths[:longest])


def _open_quote(label: str, line: int, where: str) -> InputError:
    return InputError(
        f"{label}: the quote that opens in line {line:,} is not closed {where}. "
        'Close it, or write quotes inside a cell twice (""), then run again.'
    )
