"""A BEIR folder (Thakur et al. 2021): corpus.jsonl, queries.jsonl and qrels/*.tsv, which name texts by their ids."""

from pathlib import Path

import polars as pl

from stages.core.errors import InputError
from stages.pairs.columns import find_column, parse_split, read_first_cells
from stages.pairs.ingest import Ingester
from stages.pairs.qrels import find_id_conflicts
from stages.readers.base import TableSource
from stages.readers.files import check_file, file_source, unreadable_file_error
from stages.readers.text_encoding import escape_file_name

CORPUS_COLUMNS = {"document": "text", "document_id": "_id", "title": "title"}
QUERY_COLUMNS = {"question": "text", "id": "_id"}
_QRELS_COLUMNS = {"id": "query-id", "document_id": "corpus-id", "relevance": "score"}


def find_beir_files(folder: Path) -> list[Path]:
    """corpus, queries and qrels files of a folder, in this order. Raises `InputError` where one is missing."""
    try:
        found = _find_beir_files(folder)
    except OSError as error:
        raise unreadable_file_error("--beir", folder, error) from error
    for path in found:
        check_file(path, "--beir")
    return found


def _find_beir_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"--beir: there is no folder {escape_file_name(folder)}.")
    texts = []
    for stem in ("corpus.jsonl", "queries.jsonl"):
        found = next((path for path in (folder / stem, folder / f"{stem}.gz") if path.exists()), None)
        if found is None:
            raise InputError(
                f"--beir: {escape_file_name(folder)} has no {stem} (it needs corpus.jsonl, queries.jsonl and qrels/)."
            )
        texts.append(found)
    qrels = sorted((folder / "qrels").glob("*.tsv"))
    if not qrels:
        raise InputError(
            f"--beir: {escape_file_name(folder / 'qrels')} has no .tsv file (train.tsv, dev.tsv, test.tsv)."
        )
    for path in qrels:
        if parse_split(path.stem) is None:
            raise InputError(
                f"--beir: {escape_file_name(path.name)} names no split. Call it train.tsv, dev.tsv or test.tsv."
            )
    return [*texts, *qrels]


def beir_sources(folder: Path) -> list[TableSource]:
    """The folder's files as sources, corpus and queries first."""
    return [file_source(path, path.name, None, None, None) for path in find_beir_files(folder)]


def find_qrels_columns(source: TableSource) -> dict[str, str]:
    """The columns of a qrels file. Raises `InputError` where its header is not BEIR's."""
    columns, _ = read_first_cells(source)
    return {role: find_column(name, columns, source.label, f"BEIR's {name}") for role, name in _QRELS_COLUMNS.items()}


def resolve_id_qrels(ingester: Ingester) -> tuple[list[pl.DataFrame], pl.DataFrame]:
    """Judgements by ids as judgements by texts, and the rows set aside (row, reason): unknown ids, ids used twice."""
    standalone_queries, standalone_documents = (
        pl.concat(ingester.standalone_queries),
        pl.concat(ingester.standalone_documents),
    )
    reused_ids = find_id_conflicts(standalone_queries, "id", "q")
    queries = standalone_queries.join(reused_ids, on="row", how="anti").unique("id", keep="first", maintain_order=True)
    documents = standalone_documents.sort("row").unique("document_id", keep="first", maintain_order=True)
    resolved = (
        pl.concat(ingester.id_qrels)
        .join(queries.select("id", "q"), on="id", how="left")
        .join(documents.select("document_id", "d"), on="document_id", how="left")
    )
    unknown = pl.concat(
        [
            reused_ids.with_columns(reason=pl.lit("id of another question")),
            resolved.filter(pl.col("q").is_null()).select("row", reason=pl.lit("unknown question id")),
            resolved.filter(pl.col("q").is_not_null() & pl.col("d").is_null()).select(
                "row", reason=pl.lit("unknown document id")
            ),
        ]
    )
    return [resolved.filter(pl.col("q").is_not_null() & pl.col("d").is_not_null())], unknown
