"""JSON Lines, streamed, and JSON: an array of objects, an object of columns, or an object that holds one array."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.readers.base import Cell, RejectedRow, RowBatch, batch_rows, to_cell
from stages.readers.text_encoding import open_text


def read_jsonlines(path: Path, label: str, encoding: str | None = None) -> Iterator[RowBatch]:
    """Read one JSON object per line; other lines are rejected as "not a JSON object", and blank lines are skipped."""
    with open_text(path, encoding) as text:
        is_empty = True
        for batch in batch_rows(_parse_json_lines(line for line in text if not line.isspace())):
            is_empty = False
            yield batch
        if is_empty:
            raise InputError(f"{label}: the file is empty. JSON Lines needs one object a line.")


def _parse_json_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Cell]] | RejectedRow]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.lstrip("\ufeff"))
        except (json.JSONDecodeError, RecursionError):
            record = None
        if isinstance(record, Mapping):
            yield number, {str(name): to_cell(value) for name, value in record.items()}
        else:
            yield RejectedRow(number, "not a JSON object", {"": line.strip()})


def read_json(path: Path, label: str, encoding: str | None = None) -> Iterator[RowBatch]:
    """Read a whole JSON file. Raises `InputError` if it is not valid, or has no list of objects."""
    with open_text(path, encoding) as text:
        content = text.read()
    if not content.strip():
        raise InputError(f"{label}: the file is empty.")
    try:
        value = json.loads(content.lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{label}: not valid JSON: {error}. If it holds one object a line, name it .jsonl.") from error
    yield from batch_rows(_iter_record_rows(_find_records(value, label)))


def _find_records(value: Any, label: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = {name: entry for name, entry in value.items() if isinstance(entry, list)}
        if len(lists) == 1 and all(isinstance(entry, dict) for entry in next(iter(lists.values()))):
            return next(iter(lists.values()))
        if lists and len(lists) == len(value) and len(set(map(len, lists.values()))) == 1:
            return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        if value and all(isinstance(entry, dict) for entry in value.values()):  # {"q1": {...}, "q2": {...}}
            return list(value.values())
    raise InputError(f"{label}: no list of objects in it. Expected [{{...}}, ...] or columns of equal length.")


def _iter_record_rows(records: list[Any]) -> Iterator[tuple[int, dict[str, Cell]] | RejectedRow]:
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict):
            yield number, {str(name): to_cell(value) for name, value in record.items()}
        else:
            yield RejectedRow(number, "not a JSON object", {"": record})
