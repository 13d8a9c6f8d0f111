"""Sources from paths and globs: the files, their order and their format."""

import difflib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.core.errors import InputError
from stages.core.files import file_digest
from stages.readers.base import RowBatch, TableSource
from stages.readers.csv import read_delimited
from stages.readers.excel import read_excel, sheet_names
from stages.readers.json import read_json, read_jsonlines
from stages.readers.parquet import read_arrow, read_parquet
from stages.readers.text_encoding import escape_file_name, open_bytes

_FORMATS = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".xlsx": "excel",
    ".xlsm": "excel",
}


def find_files(patterns: Sequence[str], option_name: str) -> list[Path]:
    """The files behind paths and globs, each once, ordered by name (by content if two have the same name).

    So the order depends on names and contents alone, like the artifact's key. Raises `InputError` for a path that does
    not exist (similar names are suggested), a glob without a match, and a file that can't be read.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        if pattern == "-":
            raise InputError(f"{option_name}: - is standard input, which can be read only once. Name a file instead.")
        if "://" in pattern:  # it may hold a secret, so it is not shown
            raise InputError(f"{option_name}: the URL is not fetched yet: run prep build-pairs or prep refresh first.")
        try:
            path = Path(pattern).expanduser()
            matches = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            missing_message = "" if matches else _describe_missing_file(pattern, path)
        except (OSError, RuntimeError) as error:  # a folder without permission; an unknown home
            raise unreadable_file_error(option_name, pattern, error) from error
        if not matches:
            raise InputError(f"{option_name}: {missing_message}")
        for match in matches:
            check_file(match, option_name)
            files[match.resolve()] = None
    names = [path.name for path in files]
    return sorted(files, key=lambda path: (path.name, file_digest(path) if names.count(path.name) > 1 else ""))


def _describe_missing_file(pattern: str, path: Path) -> str:
    if glob.has_magic(pattern):
        return f"no file matches {pattern!r}."
    if not path.parent.is_dir():
        return f"there is no file {pattern!r}: its folder {escape_file_name(path.parent)} does not exist."
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 3)
    return f"there is no file {pattern!r}." + (
        f" Did you mean {' or '.join(map(escape_file_name, close))}?" if close else ""
    )


def check_file(path: Path, option_name: str) -> None:
    """Raise `InputError` if a path is not a regular file (a pipe could be read only once), or can't be read."""
    try:
        if path.is_dir():
            raise InputError(
                f"{option_name}: {escape_file_name(path)} is a folder. Name its files, for example "
                f"{escape_file_name(path)}/*.csv."
            )
        if path.exists() and not path.is_file():
            raise InputError(
                f"{option_name}: {escape_file_name(path)} is no file but a pipe or a device. Copy it into a file first."
            )
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable_file_error(option_name, path, error) from error


def unreadable_file_error(label: str, path: Path | str, error: Exception) -> InputError:
    """The error for a file that can't be read."""
    return InputError(f"{label}: {escape_file_name(path)} can't be read: {getattr(error, 'strerror', None) or error}.")


def label_files(paths: Sequence[Path]) -> list[str]:
    """The label of each file: its name, with a number from the second file of that name on."""
    names = [escape_file_name(path.name) for path in paths]
    file_labels: list[str] = []
    for name in names:
        label, number = name, 1
        while label in file_labels or (number > 1 and label in names):
            number += 1
            label = f"{name}#{number}"
        file_labels.append(label)
    return file_labels


def file_source(
    path: Path, label: str, encoding: str | None = None, delimiter: str | None = None, sheet: str | None = None
) -> TableSource:
    """A file as a source; the format is detected by the extension, or else by the first bytes."""

    def read() -> Iterator[RowBatch]:
        try:
            yield from read_format()
        except OSError as error:
            raise unreadable_file_error(label, path, error) from error

    def read_format() -> Iterator[RowBatch]:
        kind = detect_file_format(path)
        if kind == "csv":
            return read_delimited(path, label, encoding, delimiter)
        if kind == "tsv":
            return read_delimited(path, label, encoding, delimiter or "\t")
        if kind == "jsonl":
            return read_jsonlines(path, label, encoding)
        if kind == "json":
            return read_json(path, label, encoding)
        if kind == "excel":
            return read_excel(path, label, sheet)
        return read_parquet(path, label) if kind == "parquet" else read_arrow(path, label)

    if detect_file_format(path) == "excel" and (sheet is not None or len(sheet_names(path)) > 1):
        label = f"{label}:{sheet or sheet_names(path)[0]}"
    return TableSource(label, read)


def detect_file_format(path: Path) -> str:
    """One of csv, tsv, jsonl, json, parquet, arrow, excel. Raises `InputError` for a format that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if suffixes and suffixes[-1] in (".xls", ".ods"):
        raise InputError(
            f"{escape_file_name(path.name)}: {suffixes[-1]} workbooks are not read. Save it as .xlsx or .csv."
        )
    return _FORMATS.get(suffixes[-1] if suffixes else "", "") or _sniff_file_format(path)


def _sniff_file_format(path: Path) -> str:
    with open_bytes(path) as file:
        start = file.read(4096)
    for magic, kind in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"PK\x03\x04", "excel")):
        if start.startswith(magic):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return {b"{": "jsonl", b"[": "json"}.get(text[:1], "csv")
