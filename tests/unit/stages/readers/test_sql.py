"""Rows from databases: SQLite, and PostgreSQL where a server is installed."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.readers import sql
from stages.readers.sql import query_rows_source, redact_password, write_query_rows

ROWS = [("1", "Who pays?", "The sender."), ("2", "When?", None)]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    connection = sqlite3.connect(tmp_path / "faq.db")
    connection.execute("CREATE TABLE faq (id INTEGER, question TEXT, answer TEXT)")
    connection.executemany("INSERT INTO faq VALUES (?, ?, ?)", ROWS)
    connection.commit()
    connection.close()
    return f"sqlite:///{tmp_path}/faq.db"


def query_columns(url: str, query: str, path: Path) -> list[tuple[object, ...]]:
    write_query_rows(url, query, path)
    batches = list(query_rows_source(path).read())
    return [row for batch in batches for row in zip(*batch.columns.values(), strict=True)]


def check_rows(url: str, tmp_path: Path) -> None:
    write_query_rows(url, "SELECT id, question, answer FROM faq ORDER BY id", tmp_path / "rows.arrow")
    source = query_rows_source(tmp_path / "rows.arrow")
    for _ in range(2):  # a source can be read again
        batches = list(source.read())
        assert source.label == "sql"
        assert [row for batch in batches for row in batch.row_numbers] == [1, 2]
        assert batches[-1].columns == {
            "id": ["1", "2"],
            "question": ["Who pays?", "When?"],
            "answer": ["The sender.", None],
        }


def test_the_rows_of_a_sqlite_query_are_the_same_bytes_in_any_order(sqlite_url: str, tmp_path: Path) -> None:
    check_rows(sqlite_url, tmp_path)
    for way in ("ASC", "DESC"):
        write_query_rows(sqlite_url, f"SELECT * FROM faq ORDER BY id {way}", tmp_path / way)
    assert (tmp_path / "ASC").read_bytes() == (tmp_path / "DESC").read_bytes()


def test_rows_are_sorted_for_any_order_of_the_database(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)"
    query = f"{numbers} SELECT nullif(i % 7, 0) AS id, 'q' || i AS question FROM n ORDER BY i"

    def rows(query: str, name: str) -> list[tuple[object, ...]]:
        return query_columns(sqlite_url, query, tmp_path / "rows" / f"{name}.arrow")

    up = rows(query, "up")
    expected = sorted(
        ((str(i % 7) if i % 7 else None, f"q{i}") for i in range(1, 12001)), key=lambda r: (r[0] or "", r[1])
    )
    assert up == expected
    monkeypatch.setattr(sql, "_SORT_RUN_BYTES", 1)  # a run a piece, merged
    assert rows(f"{query} DESC", "down") == expected
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["down.arrow", "up.arrow"]
    assert rows("SELECT 1 AS a WHERE 0", "none") == []
    assert rows("SELECT x'ff41' AS a", "bytes") == [("\\udcffA",)]


@pytest.mark.parametrize(
    "url, query, message",
    [
        ("{url}", "SELECT nobody FROM faq", "no such column: nobody"),
        ("{url}", "DELETE FROM faq", "readonly"),
        ("{url}", "SELECT 1 AS a, 2 AS a", "two columns named 'a'"),
        ("sqlite:////none/faq.db", "SELECT 1", "no SQLite file"),
        ("mysql://u:s3cret@h/d", "SELECT 1", "neither SQLite nor PostgreSQL"),
        ("postgresql://u:s3cret@127.0.0.1:9/d", "SELECT 1", "PostgreSQL"),
        ("postgresql://u:s3cret@[bad/d", "SELECT 1", "PostgreSQL"),
    ],
)
def test_an_error_does_not_show_the_password(
    sqlite_url: str, tmp_path: Path, url: str, query: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        write_query_rows(url.format(url=sqlite_url), query, tmp_path / "rows.arrow")
    assert not list(tmp_path.glob("rows*"))
    assert "s3cret" not in str(caught.value) + str(caught.value.__cause__ or "")


def test_passwords_are_redacted() -> None:
    assert redact_password("a p%40ss b\n p@ss", "postgresql://u:p%40ss@h/d") == "a *** b ***"
    assert redact_password("key", "postgresql://h/d?password=key") == "***"


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own on a socket in a temporary folder."""
    pytest.importorskip("psycopg")
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("PostgreSQL's server programs are not installed")
    folder = Path(tmp_path_factory.mktemp("pg")).resolve()
    socket = Path("/tmp") / f"prep-pg-{os.getpid()}"  # a socket's path may not be long
    socket.mkdir(mode=0o777)
    user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        if not shutil.which("runuser") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("started as root, and there is no user 'postgres' to run the server")
        user = ["runuser", "-u", "postgres", "--"]
        for path in (folder, socket):
            shutil.chown(path, "postgres")
        for path in folder.parents:
            if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
                path.chmod(0o755)
    data = folder / "data"

    def call(*command: str) -> None:
        subprocess.run([*user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    call("initdb", "-D", str(data), "-A", "trust", "-U", "prep", "--no-sync")
    call(
        "pg_ctl",
        "-D",
        str(data),
        "-w",
        "-o",
        f"-c listen_addresses='' -k {socket} -F",
        "-l",
        str(folder / "log"),
        "start",
    )
    try:
        yield f"postgresql://prep@/postgres?host={socket}"
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(socket, ignore_errors=True)


def test_postgres(postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE faq (id integer, question text, answer text)")
        connection.cursor().executemany("INSERT INTO faq VALUES (%s, %s, %s)", ROWS)
    check_rows(postgres_url, tmp_path)
    several = query_columns(postgres_url, "SELECT ARRAY['a', 'b'] AS documents", tmp_path / "several.arrow")
    assert several == [('["a", "b"]',)]
    with pytest.raises(InputError, match="data-modifying"):
        write_query_rows(
            postgres_url, "WITH gone AS (DELETE FROM faq RETURNING id) SELECT id FROM gone", tmp_path / "gone.arrow"
        )
    with pytest.raises(InputError, match="does not exist"):
        write_query_rows(postgres_url, "SELECT nothing FROM faq", tmp_path / "nothing.arrow")
    many = "SELECT 'q' || n AS question, 'd' || n AS text FROM generate_series(1, 12000) n"
    assert len(query_columns(postgres_url, many, tmp_path / "many.arrow")) == 12_000
