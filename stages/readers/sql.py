"""Rows of a query on SQLite or PostgreSQL, fetched in pieces over a read-only connection."""

import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa

from stages.core.errors import InputError
from stages.readers.base import TableSource, cell_length, to_cell
from stages.readers.parquet import read_arrow

SQL_LABEL = "sql"
_FETCH_ROWS = 5000
_SORT_RUN_BYTES = 64 << 20
TextRow = tuple[str | None, ...]
_DATABASE_HELP = "Write the database as sqlite:///path/to/file.db or postgresql://user@host/name."


def query_rows_source(path: Path) -> TableSource:
    """The rows that `write_query_rows` wrote to `path`, as a source."""
    return TableSource(SQL_LABEL, lambda: read_arrow(path, SQL_LABEL))


def write_query_rows(url: str, query: str, path: Path) -> None:
    """Execute a query once and write its rows to an Arrow stream of texts; an array becomes a JSON array of texts.

    Rows are sorted by their cells, since a database promises no order and the result must not depend on one. Sorted
    runs of bounded size are merged from files beside `path`, which are deleted. Polars holds the rows in memory: a
    query of 1 GB took 23 s of CPU time and 3.1 GiB, here 30 s and 0.5 GiB.
    Raises `InputError` if the database or the query can't be read, without the password.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    runs: list[Path] = []
    partial_path = path.with_suffix(".part")
    try:
        with _open_query(url, query) as (names, pieces):
            schema = pa.schema([(name, pa.large_string()) for name in names])
            for rows in _iter_sorted_runs(pieces):
                runs.append(path.with_suffix(f".{len(runs)}"))
                _write_text_rows(runs[-1], schema, rows)
        with ExitStack() as files:
            sorted_runs = [_read_text_rows(files.enter_context(pa.OSFile(str(run)))) for run in runs]
            _write_text_rows(partial_path, schema, heapq.merge(*sorted_runs, key=_row_sort_key))
    finally:
        for run in runs:
            run.unlink(missing_ok=True)
    partial_path.replace(path)


def _iter_sorted_runs(pieces: Iterable[list[tuple[Any, ...]]]) -> Iterator[list[TextRow]]:
    """Rows as texts in sorted lists of bounded size."""
    rows: list[TextRow] = []
    size = 0
    for piece in pieces:
        found = [tuple(map(_value_to_utf8, row)) for row in piece]
        rows += found
        size += sum(64 + cell_length(cell) for row in found for cell in row)
        if size > _SORT_RUN_BYTES:
            yield sorted(rows, key=_row_sort_key)
            rows, size = [], 0
    yield sorted(rows, key=_row_sort_key)


def _row_sort_key(row: TextRow) -> list[tuple[bool, str]]:
    return [(cell is not None, cell or "") for cell in row]


def _write_text_rows(path: Path, schema: pa.Schema, rows: Iterable[TextRow]) -> None:
    rest = iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while piece := list(islice(rest, _FETCH_ROWS)):
            columns = [pa.array(column, pa.large_string()) for column in zip(*piece, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema))


def _read_text_rows(file: Any) -> Iterator[TextRow]:
    for batch in pa.ipc.open_stream(file):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _value_to_utf8(value: Any) -> str | None:
    cell = to_cell(value)
    text = json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell
    return text and text.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8 text


@contextmanager
def _open_query(url: str, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    if url.startswith("sqlite:///"):
        with _query_sqlite(Path(url.removeprefix("sqlite:///")), query) as found:
            yield found
    elif url.startswith(("postgresql://", "postgres://")):
        with _query_postgres(url, query) as found:
            yield found
    else:
        raise InputError(f"the database is neither SQLite nor PostgreSQL. {_DATABASE_HELP}")


@contextmanager
def _query_sqlite(path: Path, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    if not path.is_file():
        raise InputError(f"there is no SQLite file {path}. {_DATABASE_HELP}")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            cursor = connection.execute(query)
            yield _cursor_column_names(cursor.description), _fetch_batches(cursor)
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise InputError(f"the SQL query fails on {path.name}: {error}. Check it with the sqlite3 shell.") from error


@contextmanager
def _query_postgres(url: str, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    try:
        import psycopg
    except ImportError:
        raise InputError("PostgreSQL needs the extra: pip install 'prep-reranker[postgres]'") from None
    try:
        with psycopg.connect(url) as connection:
            connection.read_only = True
            with connection.cursor(name="prep") as cursor:  # a named cursor stays on the server: rows come in pieces
                cursor.execute(query)
                yield _cursor_column_names(cursor.description), _fetch_batches(cursor)
    except psycopg.Error as error:
        # no chained error: its text may hold the URL
        raise InputError(f"the SQL query fails on PostgreSQL: {redact_password(str(error), url)}") from None


def _cursor_column_names(description: Any) -> list[str]:
    if not description:
        raise InputError("the SQL query gives no columns. Write a SELECT.")
    names = [str(column[0]) for column in description]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"the SQL query gives two columns named {twice[0]!r}. Rename one with AS.")
    return names


def _fetch_batches(cursor: Any) -> Iterator[list[tuple[Any, ...]]]:
    while piece := cursor.fetchmany(_FETCH_ROWS):
        yield piece


def redact_password(message: str, url: str) -> str:
    """A driver's message in one line, with the URL and its password replaced by ***."""
    try:
        parts = urlsplit(url)
        passwords = [parts.password or "", unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return "the URL can't be parsed"
    for secret in filter(None, [url, *passwords]):
        message = message.replace(secret, "***")
    return " ".join(message.split())
