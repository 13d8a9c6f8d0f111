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
from itertools import chain
from pathlib import Path
from typing import Any

import xxhash

from pipeline.workflow.artifact_store import Workspace, digest_folder
from stages.core.errors import InputError
from stages.core.files import file_digest, write_durably

URL_KEYS = ("tables", "corpus", "label_overrides")
"""The keys of [pairs] that may hold URLs."""
POINTER_FILE = "current.json"
"""Written last and atomically: {"publication": its folder, "files": {name: digest}}."""
INDEX_FILE = "index.json"
"""The local files of each URL and SQL query of the last run."""
_MIN_AGE_SECONDS = 2.0
"""Seconds after which a file that is written again has another time: object stores count whole seconds."""
_GLOB = re.compile(r"[*\[]")


def is_url(value: object) -> bool:
    """Whether this is a URL such as s3://bucket/key or file:///path."""
    return isinstance(value, str) and "://" in value


def redact_url(value: Any) -> Any:
    """A URL, or a list of values, without user names, passwords and options of URLs."""
    if isinstance(value, list | tuple):
        return [redact_url(item) for item in value]
    if not is_url(value):
        return value
    scheme, _, rest = value.partition("://")
    return f"{scheme}://{re.sub('^[^@]*:[^@]*@', '', rest.partition('?')[0])}"


def fetch_files(workspace: Workspace, pairs_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fetch the files behind the URLs of [pairs] and the rows of its SQL query: the local files by key of `URL_KEYS`,
    and the file of the rows for "database".

    A glob in the last part of a URL stands for all files that match. A file is not fetched again if its size and time
    have not changed; the query is always executed. The workspace must be locked. Raises `InputError` if a URL or a
    database can't be read.
    """
    folder = _get_cache_folder(workspace)
    index: dict[str, list[str]] = {}
    files = _replace_urls(pairs_settings, lambda key, url: index.setdefault(url, _fetch_url(folder, key, url)))
    if query := _name_query(pairs_settings):
        index[query] = [str(_fetch_query(folder, query))]
        files["database"] = index[query][0]
    if index or (folder / INDEX_FILE).exists():  # also without a URL, so that the old ones are removed
        write_durably(folder / INDEX_FILE, json.dumps(index, indent=1))
        (folder / INDEX_FILE).chmod(0o600)  # a URL may hold a secret
    return files


def find_cached_files(workspace: Workspace, pairs_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the last `fetch_files`, without a connection and without changes. A URL that was never fetched is
    returned as it is."""
    index = _read_fetch_index(_get_cache_folder(workspace))
    files = _replace_urls(pairs_settings, lambda key, url: index.get(url) or [url])
    query = _name_query(pairs_settings)
    return files | ({"database": index[query][0]} if query and query in index else {})


def find_stale_files(workspace: Workspace) -> Iterator[Path]:
    """The fetched files of URLs and queries that the settings no longer contain."""
    folder = _get_cache_folder(workspace)
    used = {Path(file).parent.name for files in _read_fetch_index(folder).values() for file in files}
    yield from (p for p in folder.glob("*") if p.name != INDEX_FILE and p.name.partition(".")[0] not in used)


def _read_fetch_index(folder: Path) -> dict[str, list[str]]:
    try:
        index: dict[str, list[str]] = json.loads((folder / INDEX_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return index


def _replace_urls(pairs: Mapping[str, Any], files: Callable[[str, str], list[str]]) -> dict[str, Any]:
    replaced: dict[str, Any] = {}
    for key in URL_KEYS:
        value = pairs.get(key)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if any(map(is_url, values)):
            paths = [files(key, str(item)) if is_url(item) else [str(item)] for item in values]
            replaced[key] = list(dict.fromkeys(chain.from_iterable(paths)))
            if key == "label_overrides":
                replaced[key] = replaced[key][0]  # `_fetch_url` refuses several
    return replaced


def _fetch_url(folder: Path, key: str, url: str) -> list[str]:
    """The local copies of the files behind a URL."""
    setting = f"[pairs] {key} = {redact_url(url)}"
    if "#" in url:
        raise InputError(f"{setting}: a # ends the file's name in a URL. Write %23 for the sign.")
    if "*" in url.partition("?")[0].rpartition("/")[0]:
        raise InputError(f"{setting}: only the last part of a URL may hold a *.")
    with translate_storage_errors(f"{setting} can't be read", url):
        system, path = _resolve_url(url)
        infos = [info for info in [system.get_file_info(path)] if info.is_file] or _expand_glob(system, path, setting)
        if key == "label_overrides" and len(infos) > 1:
            raise InputError(f"{setting}: {len(infos)} files match, and only one is allowed.")
        options = url.partition("?")[2]
        return [
            str(_fetch_file(folder, f"{url.partition('://')[0]}\0{options}\0{info.path}", system, info))
            for info in infos
        ]


def _name_query(pairs: Mapping[str, Any]) -> str | None:
    """The key in the index of the settings' database and SQL query, if they have one."""
    return f"{pairs['database']}\0{pairs['sql']}" if pairs.get("database") and pairs.get("sql") else None


def _fetch_query(folder: Path, query_name: str) -> Path:
    from stages.readers.sql import write_query_rows

    path = folder / xxhash.xxh3_64_hexdigest(query_name.encode()) / "rows.arrow"
    url, query = query_name.split("\0", 1)
    write_query_rows(url, query, path)
    return path


def _expand_glob(system: Any, path: str, setting: str) -> list[Any]:
    """The files that match a glob, sorted by name."""
    from pyarrow import fs

    folder, _, pattern = path.rpartition("/")
    entries = system.get_file_info(fs.FileSelector(folder)) if _GLOB.search(pattern) else []
    matches = [info for info in entries if info.is_file and fnmatch.fnmatchcase(info.base_name, pattern)]
    if not matches:
        raise InputError(f"{setting}: there is no such file.")
    return sorted(matches, key=lambda info: str(info.path))


def _fetch_file(folder: Path, identity: str, system: Any, info: Any) -> Path:
    """The local copy of the file `info`, with the same name, in a folder for this file."""
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
    state_file.unlink(missing_ok=True)  # it must not describe another file
    partial.replace(file)
    old_enough = info.mtime_ns is not None and began - info.mtime_ns / 1e9 > _MIN_AGE_SECONDS
    write_durably(state_file, json.dumps({**state, "settled": old_enough}))
    return file


def upload_publication(workspace: Workspace, url: str) -> bool:
    """Copy the current publication to published/NAME under a URL, then name it in `POINTER_FILE`.

    Readers start at `POINTER_FILE`, so they never see an incomplete publication. Returns False if it names this
    publication already. Raises `InputError` if the URL can't be written; the local publication is complete then, and
    the next refresh tries again.
    """
    name = workspace.current.readlink().as_posix()  # published/NAME
    with translate_storage_errors(f"publish_to = {redact_url(url)} can't be written", url):
        system, root = _resolve_url(url)
        local = _is_local(system)
        source_root, target_root = workspace.root.resolve(), Path(root).resolve()
        if local and (source_root.is_relative_to(target_root) or target_root.is_relative_to(source_root)):
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
            os.sync()  # the files are on disk before the pointer
        _write_atomically(
            system, f"{root}/{POINTER_FILE}", json.dumps({"publication": name, "files": digests}, indent=1).encode()
        )
    return True


def _digest_publication(folder: Path) -> dict[str, str]:
    """Name -> digest of every file of a publication (a folder of links to files and folders)."""
    digests: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            digests |= {f"{entry.name}/{name}": digest for name, digest in digest_folder(entry.resolve()).items()}
        else:
            digests[entry.name] = file_digest(entry)
    return digests


def _write_atomically(system: Any, path: str, content: bytes) -> None:
    """Object stores show only complete files; a local file is renamed when it is complete."""
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
    """Turn an error of a file system into an `InputError`, without the secrets in `url`."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).replace(url, redact_url(url)).split())[:300]
        raise InputError(
            f"{message}: {reason}. Check the name, and that the credentials are where the store's tools expect them "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws for s3://, AWS_ENDPOINT_URL for your own server)."
        ) from error
