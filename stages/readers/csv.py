"""CSV and TSV: every cell stays text ("007" stays "007"); broken rows are rejected."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.readers.base import MAX_BATCH_CHARS, MAX_BATCH_ROWS, Cell, RejectedRow, RowBatch
from stages.readers.text_encoding import open_text

MAX_CELL_CHARS = 256 << 20
_MAX_LINES_PER_RECORD = 10_000
_LINE_END = re.compile(r"\r\n|\r|\n")
_EOF_MARK = "\0prep: end of file\0"
"""A last line for the parser: if it is found inside a cell, a quote was not closed."""


def read_delimited(
    path: Path, label: str, encoding: str | None = None, delimiter: str | None = None
) -> Iterator[RowBatch]:
    """Read a delimited file in batches. Row numbers count data rows from 1 (the header is row 0, blank lines are none).

    Without `delimiter`, the header decides between comma, semicolon, tab and bar. A row with more or fewer cells than
    the header is rejected as "ragged row" (empty cells past the last column do no harm).
    Raises `InputError` for an empty file, or a quote that opens and does not close.
    """
    with open_text(path, encoding) as text:
        first = _read_header_line(text)
        if not first:
            raise InputError(f"{label}: the file is empty. A table needs a header line and at least one row.")
        delimiter = delimiter or sniff_delimiter(first)
        csv.field_size_limit(MAX_CELL_CHARS)
        reader = csv.reader(itertools.chain([first], text, [_EOF_MARK]), delimiter=delimiter)
        yield from _parse_records(reader, label)


def _read_header_line(text: Iterator[str]) -> str:
    return next((line for line in text if line.strip("\ufeff \t\r\n")), "")


def sniff_delimiter(header: str) -> str:
    """The delimiter that splits a header line into the most cells; the comma if none splits it."""
    return max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _parse_records(reader: Any, label: str) -> Iterator[RowBatch]:
    header: list[str] | None = None
    row_number, size = 0, 0
    rows: list[list[str]] = []
    row_numbers: list[int] = []
    rejected_rows: list[RejectedRow] = []
    while True:
        previous_line = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise _unclosed_quote_error(label, previous_line + 1, f"({error})") from error
        if reader.line_num - previous_line > 1:
            if _EOF_MARK in row[-1]:
                raise _unclosed_quote_error(label, previous_line + 1, "before the end of the file")
            if reader.line_num - previous_line > _MAX_LINES_PER_RECORD:
                raise _unclosed_quote_error(
                    label, _quote_start_line(row, previous_line + 1), f"within {_MAX_LINES_PER_RECORD:,} lines"
                )
        if not row or row == [_EOF_MARK]:
            continue
        if header is None:
            header = _clean_header(row)
            continue
        row_number += 1
        if len(row) != len(header):
            row, extra = row[: len(header)], row[len(header) :]
            if len(row) < len(header) or any(extra):
                data = dict(zip(header, row, strict=False)) | ({"": extra} if extra else {})
                rejected_rows.append(RejectedRow(row_number, "ragged row", data))
                size += 1000
                continue
        rows.append(row)
        row_numbers.append(row_number)
        size += sum(map(len, row))
        if size >= MAX_BATCH_CHARS or len(rows) >= MAX_BATCH_ROWS:
            yield _make_batch(header, row_numbers, rows, rejected_rows)
            rows, row_numbers, rejected_rows, size = [], [], [], 0
    if header is not None:  # a header without rows still gives the columns
        yield _make_batch(header, row_numbers, rows, rejected_rows)


def _clean_header(row: list[str]) -> list[str]:
    """Column names, trimmed; a repeated name gets its number, so that it can't hide the first."""
    names: list[str] = []
    for cell in row:
        name = cell.strip().lstrip("\ufeff")
        names.append(f"{name} ({names.count(name) + 1})" if name in names else name)
    while len(names) > 1 and not names[-1]:
        names.pop()
    return names


def _make_batch(header: list[str], numbers: list[int], rows: list[list[str]], rejected: list[RejectedRow]) -> RowBatch:
    columns: dict[str, list[Cell]] = {name: [] for name in header}
    if rows:
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return RowBatch(numbers, columns, rejected)


def _quote_start_line(row: list[str], line: int) -> int:
    """The line on which the longest of a record's cells begins."""
    lengths = [len(_LINE_END.findall(cell)) for cell in row]
    longest = max(range(len(row)), key=lengths.__getitem__)
    return line + sum(lengths[:longest])


def _unclosed_quote_error(label: str, line: int, where: str) -> InputError:
    return InputError(
        f"{label}: the quote that opens in line {line:,} is not closed {where}. "
        'Close it, or write quotes inside a cell twice (""), then run again.'
    )
