"""The sources of one run: where their files are, how they are opened, and the pass over their rows."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.context import Progress
from stages.core.errors import InputError
from stages.core.files import file_digest
from stages.pairs.columns import (
    choose_corpus_columns,
    choose_pair_columns,
    find_column,
    parse_split,
    read_first_cells,
)
from stages.pairs.ingest import Ingester
from stages.pairs.params import Params
from stages.readers.base import TableSource
from stages.readers.beir import BeirFiles, find_beir_files
from stages.readers.files import file_source, find_files, label_files
from stages.readers.sql import query_rows_source
from stages.readers.text_encoding import escape_file_name

_BEIR_CORPUS_COLUMNS = {"document": "text", "document_id": "_id", "title": "title"}
_BEIR_QUERY_COLUMNS = {"question": "text", "id": "_id"}
_BEIR_QRELS_COLUMNS = {"id": "query-id", "document_id": "corpus-id", "relevance": "score"}


@dataclass(frozen=True)
class InputFiles:
    """The files that the parameters name, each under its label (its name, with a number if several share it)."""

    tables: Mapping[str, Path]
    corpus: Mapping[str, Path]
    beir: BeirFiles | None
    query_rows: Path | None
    """The rows of the SQL query."""
    label_overrides: Path | None

    def digest(self) -> dict[str, str]:
        """The digest of each file's content, by its kind and label."""
        paths = {f"table:{label}": path for label, path in self.tables.items()}
        paths |= {f"corpus:{label}": path for label, path in self.corpus.items()}
        if self.beir:
            paths |= {f"beir:{path.name}": path for path in (self.beir.corpus, self.beir.queries)}
            paths |= {f"beir:qrels/{path.name}": path for path in self.beir.qrels}
        if self.label_overrides:
            paths["label_overrides"] = self.label_overrides
        if self.query_rows:
            paths["sql"] = self.query_rows
        return {label: file_digest(path) for label, path in paths.items()}


def find_input_files(params: Params) -> InputFiles:
    """Find the files that the parameters name. Raises `InputError` for what is missing or can't be read."""
    beir = find_beir_files(Path(params.beir).expanduser(), "[pairs] beir") if params.beir else None
    for path in beir.qrels if beir else ():
        if parse_split(path.stem) is None:
            raise InputError(
                f"[pairs] beir: {escape_file_name(path.name)} names no split. Call it train.tsv, dev.tsv or test.tsv."
            )
    return InputFiles(
        _find_labelled(params.tables, "[pairs] tables"),
        _find_labelled(params.corpus, "[pairs] corpus"),
        beir,
        find_files([params.database], "[pairs] database")[0] if params.sql and params.database else None,
        find_files([params.label_overrides], "[pairs] label_overrides")[0] if params.label_overrides else None,
    )


def _find_labelled(patterns: Sequence[str], option_name: str) -> dict[str, Path]:
    paths = find_files(patterns, option_name)
    return dict(zip(label_files(paths), paths, strict=True))


@dataclass(frozen=True)
class PairSources:
    """Tables of pairs, tables of documents, and a BEIR folder's files (corpus, queries, then qrels)."""

    tables: list[TableSource]
    corpora: list[TableSource] = field(default_factory=list)
    beir: list[TableSource] = field(default_factory=list)

    @property
    def all_sources(self) -> list[TableSource]:
        """Every source, in the order in which rows are numbered."""
        return [*self.tables, *self.corpora, *self.beir]


def open_sources(files: InputFiles, params: Params) -> PairSources:
    """The files as sources: the tables, then the rows of the SQL query, the documents, and the BEIR folder."""

    def open_labelled(paths: Mapping[str, Path]) -> list[TableSource]:
        options = (params.encoding, params.parse_delimiter(), params.sheet)
        return [file_source(path, label, *options) for label, path in paths.items()]

    tables = open_labelled(files.tables)
    if files.query_rows:
        tables.append(query_rows_source(files.query_rows))
    beir = (files.beir.corpus, files.beir.queries, *files.beir.qrels) if files.beir else ()
    return PairSources(tables, open_labelled(files.corpus), [file_source(path, path.name) for path in beir])


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Switch Python's cycle collector off: rows make no cycles, and it would scan millions of them for nothing
    (measured: a third of the time of a table with short rows)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def ingest_sources(
    inputs: PairSources, column_options: Mapping[str, str | None], ingester: Ingester, progress: Progress
) -> tuple[dict[str, str], list[str]]:
    """Read every source into `ingester`; returns the columns chosen in the first table, and notes on the choices."""
    columns: dict[str, str] = {}
    notes: list[str] = []
    for source_number, source in enumerate(inputs.all_sources):
        beir_index = source_number - len(inputs.tables) - len(inputs.corpora)
        column_by_role: Mapping[str, str]
        if source_number < len(inputs.tables):
            mapping = choose_pair_columns(source, column_options)
            column_by_role = mapping.column_by_role
            columns = columns or mapping.column_by_role
            progress.log(f"{source.label}: " + ", ".join(f"{role} = {name!r}" for role, name in column_by_role.items()))
            notes += [f"{source.label}: {note}" for note in mapping.notes]
        elif beir_index < 0:
            column_by_role = choose_corpus_columns(source, column_options)
        elif beir_index < 2:
            column_by_role = (_BEIR_CORPUS_COLUMNS, _BEIR_QUERY_COLUMNS)[beir_index]
        else:
            column_by_role = _find_qrels_columns(source)
        for batch in source.read():
            if source_number < len(inputs.tables):
                ingester.add_pairs(source_number, source, batch, column_by_role)
            elif beir_index <= 0:
                ingester.add_documents(source_number, source, batch, column_by_role)
            elif beir_index == 1:
                ingester.add_queries(source_number, source, batch, column_by_role)
            else:
                ingester.add_qrels(
                    source_number, source, batch, column_by_role, parse_split(Path(source.label).stem) or ""
                )
            progress.advance(ingester.counts["rows in"], None, "rows")
    return columns, notes


def _find_qrels_columns(source: TableSource) -> dict[str, str]:
    """The columns of a qrels file. Raises `InputError` if its header is not BEIR's."""
    columns, _ = read_first_cells(source)
    return {
        role: find_column(name, columns, source.label, f"BEIR's {name}") for role, name in _BEIR_QRELS_COLUMNS.items()
    }
