"""Rows of a query on SQLite or PostgreSQL, fetched in pieces over a read-only connection."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import xxhash

from stages.errors import InputError
from stages.tables.columnar import read_arrow
from stages.tables.source import Batch, Source, as_cell

LABEL = "sql"
_ROWS = 5000
_KINDS = "Give --database as sqlite:///path/to/file.db or postgresql://user@host/name."


def sql_source(url: str, query: str, spool: Path) -> Source:
    """A query's rows as a source. They are fetched once, into the file `spool`, and read again from there."""

    def read() -> Iterator[Batch]:
        if not spool.exists():
            fetch(url, query, spool)
        return read_arrow(spool, LABEL)

    return Source(LABEL, read)


def fetch(url: str, query: str, spool: Path) -> None:
    """Write a query's rows as an Arrow stream of texts; an array becomes a JSON array of texts."""
    spool.parent.mkdir(parents=True, exist_ok=True)
    part = spool.with_suffix(".part")
    with _rows(url, query) as (names, pieces):
        schema = pa.schema([(name, pa.large_string()) for name in names])
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for piece in pieces:
                columns = [pa.array(map(_text, column), pa.large_string()) for column in zip(*piece, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema))
    part.rename(spool)


def _text(value: Any) -> str | None:
    cell = as_cell(value)
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell


def sql_digest(url: str, query: str) -> str:
    """A digest of the rows that a query gives now, whatever their order (a database promises none)."""
    total = 0
    with _rows(url, query) as (names, pieces):
        for piece in pieces:
            for row in piece:
                total += xxhash.xxh3_128_intdigest(repr([as_cell(value) for value in row]).encode())
    return xxhash.xxh3_128_hexdigest(f"{names}:{total % 2**128}".encode())


@contextmanager
def _rows(url: str, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    if url.startswith("sqlite:///"):
        with _sqlite(Path(url.removeprefix("sqlite:///")), query) as found:
            yield found
    elif url.startswith(("postgresql://", "postgres://")):
        with _postgres(url, query) as found:
            yield found
    else:
        raise InputError(f"--database names no database that is read. {_KINDS}")


@contextmanager
def _sqlite(path: Path, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    if not path.is_file():
        raise InputError(f"--database: there is no SQLite file {path}. {_KINDS}")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            cursor = connection.execute(query)
            yield _names(cursor.description), _pieces(cursor)
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise InputError(f"--sql on {path.name}: {error}. Check the query with the sqlite3 shell.") from error


@contextmanager
def _postgres(url: str, query: str) -> Iterator[tuple[list[str], Iterator[list[tuple[Any, ...]]]]]:
    try:
        import psycopg
    except ImportError:
        raise InputError("PostgreSQL needs the extra: pip install 'prep[postgres]'") from None
    try:
        with psycopg.connect(url) as connection:
            connection.read_only = True
            with connection.cursor(name="prep") as cursor:  # on the server, so that rows come in pieces
                cursor.execute(query)
                yield _names(cursor.description), _pieces(cursor)
    except psycopg.Error as error:
        # no chained error: its text may hold the URL
        raise InputError(f"--sql on PostgreSQL: {without_password(str(error), url)}") from None


def _names(description: Any) -> list[str]:
    if not description:
        raise InputError("--sql gave no columns: it must be a SELECT.")
    names = [str(column[0]) for column in description]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--sql gives two columns of the name {twice[0]!r}. Rename one with AS.")
    return names


def _pieces(cursor: Any) -> Iterator[list[tuple[Any, ...]]]:
    while piece := cursor.fetchmany(_ROWS):
        yield piece


def without_password(message: str, url: str) -> str:
    """A driver's message in one line, with the URL and its password blotted out."""
    try:
        parts = urlsplit(url)
        passwords = [parts.password or "", unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return "the URL can't be parsed"
    for secret in filter(None, [url, *passwords]):
        message = message.replace(secret, "***")
    return " ".join(message.split())
