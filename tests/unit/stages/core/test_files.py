"""Digests of files, and writes that are whole or absent."""

import os
from pathlib import Path

import pytest
import xxhash

from stages.core import files
from stages.core.files import file_digest, write_durably


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"  # xxh3-128 of no bytes


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    reads: list[str] = []
    hasher = xxhash.xxh3_128

    def count() -> xxhash.xxh3_128:
        reads.append("read")
        return hasher()

    monkeypatch.setattr(files.xxhash, "xxh3_128", count)
    first = file_digest(path)
    assert file_digest(path) == first
    assert len(reads) == 2  # a second write within this moment would show the same times
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime + 4)
    assert [file_digest(path), file_digest(path)] == [first, first]
    assert len(reads) == 3
    path.write_bytes(b"two")
    os.utime(path, (0, 0))
    assert file_digest(path) == hasher(b"two").hexdigest()
    assert len(reads) == 4


@pytest.mark.parametrize(("content", "written"), [("é", b"\xc3\xa9"), (b"\0\1", b"\0\1"), (memoryview(b"ab"), b"ab")])
def test_a_durable_write_replaces_the_file(tmp_path: Path, content: str | bytes | memoryview, written: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_durably(path, content)
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_can_be_named(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"whole", tmp_path / "segment.tmp")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
