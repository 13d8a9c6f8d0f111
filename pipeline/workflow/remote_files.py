"""Files behind URLs (s3://, gs://, abfs://, file://) and rows of a database: they are fetched before a step reads them,
and a publication is copied to where others read it. Steps see files of this machine only.

fsspec's filecache was tried for `_fetch_file`, over the same clients: it keeps the old content of a file that is
written anew within a second at the same size, and with `same_names` two files of one name are one; without, the name
that a format is known by is lost.
"""

import fnmatch
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from pipeline.workflow.artifact_store import Workspace, digest_folder
from stages.core.errors import InputError
from stages.core.files import file_digest, write_durably

URL_KEYS = ("tables", "corpus", "label_overrides")
"""The keys of [pairs] that may name URLs."""
POINTER_FILE = "current.json"
"""What is written last, whole: {"publication": its folder, "files": {name: digest}}."""
INDEX_FILE = "index.json"
"""Which file of this machine holds what of which URL, as it was last fetched."""
_MIN_AGE_SECONDS = 2.0
"""Seconds after which a file that was written anew shows another time: clocks of object stores tick once a second."""
_GLOB = re.compile(r"[*\[]")


def is_url(value: object) -> bool:
    """Is this s3://bucket/key, file:///path or the like?"""
    return isinstance(value, str) and "://" in value


def redact_url(value: Any) -> Any:
    """A URL, or what holds some, without what may be secret in one: who asks, and the options."""
    if isinstance(value, list | tuple):
        return [redact_url(one) for one in value]
    if not is_url(value):
        return value
    scheme, _, rest = value.partition("://")
    return f"{scheme}://{re.sub('^[^@]*:[^@]*@', '', rest.partition('?')[0])}"


def fetch_files(workspace: Workspace, pairs_settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in [pairs] behind URLs, as files of this machine that hold what stands there now: by key of
    `URL_KEYS`; and for "database" the file of the rows that the SQL query gives now.

    A glob in the last part of a URL stands for all files that match. What has not changed, by size and time, is not
    fetched again; the query is executed once. The workspace must be locked. Raises `InputError` if a URL or a database
    can't be read.
    """
    folder = _get_cache_folder(workspace)
    index: dict[str, list[str]] = {}
    found = _replace_urls(pairs_settings, lambda key, url: index.setdefault(url, _fetch_url(folder, key, url)))
    if query := _name_query(pairs_settings):
        index[query] = [str(_fetch_query(folder, query))]
        found["database"] = index[query][0]
    if index or (folder / INDEX_FILE).exists():  # if no URL is left, the old ones are forgotten
        write_durably(folder / INDEX_FILE, json.dumps(index, indent=1))
        (folder / INDEX_FILE).chmod(0o600)  # a URL may hold a secret
    return found


def find_cached_files(workspace: Workspace, pairs_settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `fetch_files`, but with the files as they were fetched last: asks nobody, and changes nothing. What was never
    fetched stays a URL."""
    index = _read_fetch_index(_get_cache_folder(workspace))
    found = _replace_urls(pairs_settings, lambda key, url: index.get(url) or [url])
    query = _name_query(pairs_settings)
    return found | ({"database": index[query][0]} if query and query in index else {})


def find_stale_files(workspace: Workspace) -> Iterator[Path]:
    """What was fetched for URLs and queries that the settings no longer name."""
    folder = _get_cache_folder(workspace)
    used = {Path(file).parent.name for files in _read_fetch_index(folder).values() for file in files}
    yield from (p for p in folder.glob("*") if p.name != INDEX_FILE and p.name.partition(".")[0] not in used)


def _read_fetch_index(folder: Path) -> dict[str, list[str]]:
    try:
        found: dict[str, list[str]] = json.loads((folder / INDEX_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _replace_urls(pairs: Mapping[str, Any], files: Callable[[str, str], list[str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in URL_KEYS:
        value = pairs.get(key)
        several = list(value) if isinstance(value, list | tuple) else [value]
        if any(map(is_url, several)):
            each = [files(key, str(one)) if is_url(one) else [str(one)] for one in several]
            found[key] = list(dict.fromkeys(file for some in each for file in some))
            if key == "label_overrides":
                found[key] = found[key][0]  # `_fetch_url` lets no more through
    return found


def _fetch_url(folder: Path, key: str, url: str) -> list[str]:
    """The files of this machine that hold what a URL stands for."""
    what = f"[pairs] {key} = {redact_url(url)}"
    if "#" in url:
        raise InputError(f"{what}: what comes after # is no part of a file's name in a URL. Write %23 for the sign.")
    if "*" in url.partition("?")[0].rpartition("/")[0]:
        raise InputError(f"{what}: only the last part of a URL may hold a *.")
    with translate_storage_errors(f"{what} can't be read", url):
        system, path = _resolve_url(url)
        infos = [info for info in [system.get_file_info(path)] if info.is_file] or _expand_glob(system, path, what)
        if key == "label_overrides" and len(infos) > 1:
            raise InputError(f"{what}: {len(infos)} files match, and it can only be one.")
        options = url.partition("?")[2]
        return [
            str(_fetch_file(folder, f"{url.partition('://')[0]}\0{options}\0{info.path}", system, info))
            for info in infos
        ]


def _name_query(pairs: Mapping[str, Any]) -> str | None:
    """The name in the index of the settings' SQL query on its database, if they have one."""
    return f"{pairs['database']}\0{pairs['sql']}" if pairs.get("database") and pairs.get("sql") else None


def _fetch_query(folder: Path, query_name: str) -> Path:
    from stages.readers.sql import write_query_rows

    path = folder / xxhash.xxh3_64_hexdigest(query_name.encode()) / "rows.arrow"
    url, query = query_name.split("\0", 1)
    write_query_rows(url, query, path)
    return path


def _expand_glob(system: Any, path: str, what: str) -> list[Any]:
    """The files that a glob stands for, by name."""
    from pyarrow import fs

    folder, _, pattern = path.rpartition("/")
    there = system.get_file_info(fs.FileSelector(folder)) if _GLOB.search(pattern) else []
    found = [info for info in there if info.is_file and fnmatch.fnmatchcase(info.base_name, pattern)]
    if not found:
        raise InputError(f"{what}: there is no such file.")
    return sorted(found, key=lambda info: str(info.path))


def _fetch_file(folder: Path, identity: str, system: Any, info: Any) -> Path:
    """The file that holds what stands at `info`, by its own name, in a folder of its own."""
    cache_folder = folder / xxhash.xxh3_64_hexdigest(identity.encode())
    file, state_file, partial = (
        cache_folder / str(info.base_name),
        cache_folder.with_suffix(".json"),
        cache_folder.with_suffix(".tmp"),
    )
    state = {"bytes": info.size, "written": info.mtime_ns}
    settled_state = json.dumps({**state, "settled": True}).encode()
    began = time.time()
    if (
        file.is_file()
        and file.stat().st_size == info.size
        and state_file.is_file()
        and state_file.read_bytes() == settled_state
    ):
        return file
    cache_folder.mkdir(parents=True, exist_ok=True)
    with system.open_input_stream(info.path) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if partial.stat().st_size != info.size:
        raise InputError(f"{info.path} changed while it was read. Run again.")
    state_file.unlink(missing_ok=True)  # it must never speak of another file
    partial.replace(file)
    old_enough = info.mtime_ns is not None and began - info.mtime_ns / 1e9 > _MIN_AGE_SECONDS
    write_durably(state_file, json.dumps({**state, "settled": old_enough}))
    return file


def upload_publication(workspace: Workspace, url: str) -> bool:
    """Copy what `current` points to into published/NAME under a URL, and then say in POINTER that it is there.

    Readers go by POINTER, so they never meet half a publication. False where it says so already. Raises `InputError`
    where that can't be written; the publication here is whole then, and the next refresh tries again.
    """
    name = workspace.current.readlink().as_posix()  # published/NAME
    with translate_storage_errors(f"publish_to = {redact_url(url)} can't be written", url):
        system, root = _resolve_url(url)
        local = _is_local(system)
        ours, theirs = workspace.root.resolve(), Path(root).resolve()
        if local and (ours.is_relative_to(theirs) or theirs.is_relative_to(ours)):
            raise InputError(
                f"publish_to = {redact_url(url)} holds the workspace, or lies in it. Name a folder beside it."
            )
        try:
            with system.open_input_stream(f"{root}/{POINTER_FILE}") as file:
                if json.loads(file.read())["publication"] == name:
                    return False
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            pass
        digests = _digest_publication(workspace.current.resolve())
        for relative in digests:
            target = f"{root}/{name}/{relative}"
            if local:
                system.create_dir(target.rpartition("/")[0], recursive=True)
            with (workspace.current / relative).open("rb") as source, system.open_output_stream(target) as out:
                shutil.copyfileobj(source, out, 1 << 20)
        if local:
            os.sync()  # what the pointer names is on the disk before it is
        _write_atomically(
            system, f"{root}/{POINTER_FILE}", json.dumps({"publication": name, "files": digests}, indent=1).encode()
        )
    return True


def _digest_publication(folder: Path) -> dict[str, str]:
    """Name -> digest of every file of a publication, which holds links to files and folders."""
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found |= {f"{entry.name}/{name}": digest for name, digest in digest_folder(entry.resolve()).items()}
        else:
            found[entry.name] = file_digest(entry)
    return found


def _write_atomically(system: Any, path: str, content: bytes) -> None:
    """Object stores show a file once it is whole; a folder must be helped."""
    written = f"{path}.tmp" if _is_local(system) else path
    with system.open_output_stream(written) as out:
        out.write(content)
    if _is_local(system):
        system.move(written, path)


def _get_cache_folder(workspace: Workspace) -> Path:
    return workspace.root / "inputs" / "fetched"


def _is_local(system: Any) -> bool:
    from pyarrow import fs

    return isinstance(system, fs.LocalFileSystem)


def _resolve_url(url: str) -> tuple[Any, str]:
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri(url)
    return system, str(path).rstrip("/")


@contextmanager
def translate_storage_errors(message: str, url: str) -> Iterator[None]:
    """Turn what a file system raises into an `InputError` for the person at the keyboard; `url` may hold secrets."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).replace(url, redact_url(url)).split())[:300]
        raise InputError(
            f"{message}: {reason}. Check the name, and that credentials stand where the store's own tools look for "
            f"them "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws for s3://, AWS_ENDPOINT_URL for one of your own)."
        ) from error
