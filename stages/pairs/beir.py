"""A BEIR folder (Thakur et al. 2021): corpus.jsonl, queries.jsonl and qrels/*.tsv, which name texts by their ids."""

from pathlib import Path

import polars as pl

from stages.core.errors import InputError
from stages.pairs.columns import exact, first_cells, own_split
from stages.pairs.ingest import Intake
from stages.pairs.qrels import second_texts
from stages.readers.base import Source
from stages.readers.files import check_file, file_source, unreadable
from stages.readers.text_encoding import shown

CORPUS = {"document": "text", "document_id": "_id", "title": "title"}
QUERIES = {"question": "text", "id": "_id"}
_QRELS = {"id": "query-id", "document_id": "corpus-id", "relevance": "score"}


def beir_files(folder: Path) -> list[Path]:
    """corpus, queries and qrels files of a folder, in this order. Raises `InputError` where one is missing."""
    try:
        found = _beir_files(folder)
    except OSError as error:
        raise unreadable("--beir", folder, error) from error
    for path in found:
        check_file(path, "--beir")
    return found


def _beir_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"--beir: there is no folder {shown(folder)}.")
    texts = []
    for stem in ("corpus.jsonl", "queries.jsonl"):
        found = next((path for path in (folder / stem, folder / f"{stem}.gz") if path.exists()), None)
        if found is None:
            raise InputError(
                f"--beir: {shown(folder)} has no {stem} (it needs corpus.jsonl, queries.jsonl and qrels/)."
            )
        texts.append(found)
    qrels = sorted((folder / "qrels").glob("*.tsv"))
    if not qrels:
        raise InputError(f"--beir: {shown(folder / 'qrels')} has no .tsv file (train.tsv, dev.tsv, test.tsv).")
    for path in qrels:
        if own_split(path.stem) is None:
            raise InputError(f"--beir: {shown(path.name)} names no split. Call it train.tsv, dev.tsv or test.tsv.")
    return [*texts, *qrels]


def beir_sources(folder: Path) -> list[Source]:
    """The folder's files as sources, corpus and queries first."""
    return [file_source(path, path.name, None, None, None) for path in beir_files(folder)]


def qrels_parts(source: Source) -> dict[str, str]:
    """The columns of a qrels file. Raises `InputError` where its header is not BEIR's."""
    columns, _ = first_cells(source)
    return {part: exact(name, columns, source.label, f"BEIR's {name}") for part, name in _QRELS.items()}


def resolve(intake: Intake) -> tuple[list[pl.DataFrame], pl.DataFrame]:
    """Judgements by ids as judgements by texts, and the rows set aside (row, reason): unknown ids, ids used twice."""
    asked, listed = pl.concat(intake.asked), pl.concat(intake.listed)
    twice = second_texts(asked, "id", "q")
    questions = asked.join(twice, on="row", how="anti").unique("id", keep="first", maintain_order=True)
    documents = listed.sort("row").unique("document_id", keep="first", maintain_order=True)
    named = (
        pl.concat(intake.qrels)
        .join(questions.select("id", "q"), on="id", how="left")
        .join(documents.select("document_id", "d"), on="document_id", how="left")
    )
    unknown = pl.concat(
        [
            twice.with_columns(reason=pl.lit("id of another question")),
            named.filter(pl.col("q").is_null()).select("row", reason=pl.lit("unknown question id")),
            named.filter(pl.col("q").is_not_null() & pl.col("d").is_null()).select(
                "row", reason=pl.lit("unknown document id")
            ),
        ]
    )
    return [named.filter(pl.col("q").is_not_null() & pl.col("d").is_not_null())], unknown
