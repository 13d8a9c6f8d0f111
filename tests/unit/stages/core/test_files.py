"""Digests of files, and writes that are whole or absent."""

import os
from pathlib import Path

import pytest

from stages.core.files import file_digest, write_durably


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"  # xxh3-128 of no bytes


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
