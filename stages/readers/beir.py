"""A BEIR folder (Thakur et al. 2021): corpus.jsonl, queries.jsonl and qrels/*.tsv, which name texts by their ids."""

from pathlib import Path
from typing import NamedTuple

from stages.core.errors import InputError
from stages.readers.files import check_file, unreadable_file_error
from stages.readers.text_encoding import escape_file_name


class BeirFiles(NamedTuple):
    """The files of a folder; each may be gzip'd, except the qrels."""

    corpus: Path
    """Columns _id, text, title."""
    queries: Path
    """Columns _id, text."""
    qrels: list[Path]
    """By name; columns query-id, corpus-id, score."""


def find_beir_files(folder: Path, option_name: str) -> BeirFiles:
    """The files of a folder. Raises `InputError`, which names the option, if one is missing or can't be read."""
    try:
        found = _find_files(folder, option_name)
    except OSError as error:
        raise unreadable_file_error(option_name, folder, error) from error
    for path in (found.corpus, found.queries, *found.qrels):
        check_file(path, option_name)
    return found


def _find_files(folder: Path, option_name: str) -> BeirFiles:
    if not folder.is_dir():
        raise InputError(f"{option_name}: there is no folder {escape_file_name(folder)}.")
    qrels = sorted((folder / "qrels").glob("*.tsv"))
    if not qrels:
        raise InputError(
            f"{option_name}: {escape_file_name(folder / 'qrels')} has no .tsv file (train.tsv, dev.tsv, test.tsv)."
        )
    return BeirFiles(
        _find_jsonlines(folder, "corpus.jsonl", option_name),
        _find_jsonlines(folder, "queries.jsonl", option_name),
        qrels,
    )


def _find_jsonlines(folder: Path, name: str, option_name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise InputError(
        f"{option_name}: {escape_file_name(folder)} has no {name}. A BEIR folder holds corpus.jsonl, queries.jsonl and "
        "qrels/*.tsv."
    )
