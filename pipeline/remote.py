"""Files behind URLs (s3://, gs://, abfs://, file://): tables are fetched before a stage reads them, and a publication
is copied to where others read it. Stages see files of this machine only."""

import fnmatch
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from pipeline.store import Workspace, folder_digests, write_durably
from stages.errors import InputError
from stages.models import file_digest

KEYS = ("tables", "corpus", "decisions")
"""The keys of [pairs] that may name URLs."""
POINTER = "current.json"
"""What is written last, whole: {"publication": its folder, "files": {name: digest}}."""
_SETTLED = 2.0
"""Seconds after which a file that was written anew shows another time: clocks of object stores tick once a second."""


def is_url(value: object) -> bool:
    """Is this s3://bucket/key, file:///path or the like?"""
    return isinstance(value, str) and "://" in value


def fetched(workspace: Workspace, pairs: Mapping[str, Any]) -> dict[str, Any]:
    """The section [pairs] with every URL among `KEYS` replaced by files that hold what stands there now.

    A glob in the last part of a URL stands for all files that match. What has not changed, by size and time, is not
    fetched again. Raises `InputError` where a URL can't be read.
    """
    found = dict(pairs)
    for key in KEYS:
        value = found.get(key)
        if is_url(value) and key == "decisions":
            (found[key],) = _files(workspace, key, str(value))
        elif isinstance(value, list | tuple) or is_url(value):
            several: list[str] = [value] if isinstance(value, str) else list(value or ())
            found[key] = [one for url in several for one in (_files(workspace, key, url) if is_url(url) else [url])]
    return found


def _files(workspace: Workspace, key: str, url: str) -> list[str]:
    """The files of this machine that hold what a URL stands for."""
    from pyarrow import fs

    with reported(f"[pairs] {key} = {shown(url)} can't be read"):
        system, path = _located(url)
        folder, _, pattern = path.rpartition("/")
        if any(sign in pattern for sign in "*?["):
            there = system.get_file_info(fs.FileSelector(folder))
            infos = sorted((i for i in there if i.is_file and fnmatch.fnmatchcase(i.base_name, pattern)), key=_path)
        else:
            infos = [info for info in [system.get_file_info(path)] if info.is_file]
        if not infos:
            raise InputError(f"[pairs] {key} = {shown(url)}: there is no such file.")
        return [str(_fetch(workspace, url, system, info)) for info in infos]


def _fetch(workspace: Workspace, url: str, system: Any, info: Any) -> Path:
    """The file that holds what stands at `info`, by its own name, in a folder of its own."""
    mine = workspace.root / "inputs" / "fetched" / xxhash.xxh3_64_hexdigest(f"{url}\0{info.path}".encode())
    file, note = mine / str(info.base_name), mine / "fetched.json"
    state = {"bytes": info.size, "written": info.mtime_ns}
    began = time.time()
    if file.is_file() and note.is_file() and note.read_text() == json.dumps({**state, "settled": True}):
        return file
    mine.mkdir(parents=True, exist_ok=True)
    partial = mine / ".tmp"
    with system.open_input_stream(info.path) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if partial.stat().st_size != info.size:
        raise InputError(f"{shown(url)} changed while it was read. Run again.")
    note.unlink(missing_ok=True)  # it must never speak of another file
    partial.replace(file)
    write_durably(note, json.dumps({**state, "settled": began - (info.mtime_ns or 0) / 1e9 > _SETTLED}))
    return file


def mirror(workspace: Workspace, url: str) -> bool:
    """Copy what `current` points to into published/NAME under a URL, and then say in POINTER that it is there.

    Readers go by POINTER, so they never meet half a publication. False where it says so already. Raises `InputError`
    where that can't be written; the publication here is whole then, and the next refresh tries again.
    """
    name = workspace.current.readlink().as_posix()  # published/NAME
    with reported(f"publish_to = {shown(url)} can't be written"):
        system, root = _located(url)
        try:
            with system.open_input_stream(f"{root}/{POINTER}") as file:
                if json.loads(file.read())["publication"] == name:
                    return False
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            pass
        digests = _digests(workspace.current.resolve())
        for relative in digests:
            target = f"{root}/{name}/{relative}"
            if _is_local(system):
                system.create_dir(target.rpartition("/")[0], recursive=True)
            with (workspace.current / relative).open("rb") as source, system.open_output_stream(target) as out:
                shutil.copyfileobj(source, out, 1 << 20)
        _put_whole(system, f"{root}/{POINTER}", json.dumps({"publication": name, "files": digests}, indent=1).encode())
    return True


def _digests(folder: Path) -> dict[str, str]:
    """Name -> digest of every file of a publication, which holds links to files and folders."""
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found |= {f"{entry.name}/{name}": digest for name, digest in folder_digests(entry.resolve()).items()}
        else:
            found[entry.name] = file_digest(entry)
    return found


def _put_whole(system: Any, path: str, content: bytes) -> None:
    """Object stores show a file once it is whole; a folder must be helped."""
    written = f"{path}.tmp" if _is_local(system) else path
    with system.open_output_stream(written) as out:
        out.write(content)
    if _is_local(system):
        system.move(written, path)


def _is_local(system: Any) -> bool:
    from pyarrow import fs

    return isinstance(system, fs.LocalFileSystem)


def _located(url: str) -> tuple[Any, str]:
    from pyarrow import fs

    found: tuple[Any, str] = fs.FileSystem.from_uri(url)
    return found


def _path(info: Any) -> str:
    return str(info.path)


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn what a file system raises into an `InputError` for the person at the keyboard."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what}: {reason}. Check the name, and that credentials stand where the store's own tools look for them "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws for s3://, AWS_ENDPOINT_URL for one of your own)."
        ) from error


def shown(url: str) -> str:
    """A URL without what may be secret in it: who asks, and the options."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
