"""Files: digests of their content, and writes that a kill or a power cut can't leave half done."""

import os
from pathlib import Path

import xxhash

_BLOCK_BYTES = 4 << 20


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path: Path, content: str | bytes | memoryview, temporary: Path | None = None) -> None:
    """Write a file so that after a kill, a power cut or a full disk it is whole or as it was before.

    A str is written as UTF-8. The bytes go into `temporary` first, on the same file system: `.tmp-<name>` beside the
    file by default. A fixed path keeps kills from leaving one such file for each name.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary or path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
