"""Files: digests of their content, and writes that a kill or a power cut can't leave half done."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import xxhash

_BLOCK_BYTES = 4 << 20
_SETTLED_SECONDS = 3.0
"""The coarsest clock of a file system in use ticks every 2 seconds (FAT)."""


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal.

    A process reads a file once: later calls compare its inode, size and times, and read it again only if one of them
    changed. A file that was written a moment ago is always read, since a second write may not change its times.
    """
    started = time.time()
    with path.open("rb") as file:
        state = _file_state(file.fileno())
        if known := _known_digests.get(state):
            return known
        hasher = xxhash.xxh3_128()
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
        is_settled = state == _file_state(file.fileno()) and started - state.changed / 1e9 > _SETTLED_SECONDS
    digest = hasher.hexdigest()
    if is_settled:
        _known_digests[state] = digest
    return digest


class _FileState(NamedTuple):
    device: int
    inode: int
    size: int
    written: int
    changed: int
    """Unlike the time of the last write, a program can't set this one."""


_known_digests: dict[_FileState, str] = {}


def _file_state(handle: int) -> _FileState:
    found = os.fstat(handle)
    return _FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def write_durably(path: Path, content: str | bytes | memoryview, temporary: Path | None = None) -> None:
    """Write a file so that after a kill, a power cut or a full disk it is complete or unchanged.

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
