"""Pairs: tables of questions and documents become queries, corpus, qrels and answers, cleaned, merged and split."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl
from pydantic import field_validator, model_validator

from stages.core.context import NullProgress, Progress, StageContext, Summary
from stages.core.errors import InputError
from stages.core.files import file_digest
from stages.core.params import BaseParams as Base
from stages.core.params import option
from stages.pairs.beir import beir_sources, find_beir_files
from stages.pairs.columns import PAIR_ROLES
from stages.pairs.ingest import Ingester
from stages.pairs.rejects import RejectWriter
from stages.pairs.sources import PairSources, ingest_sources, pause_garbage_collection
from stages.pairs.split import SplitRatios
from stages.pairs.text_store import TextStore
from stages.pairs.write_tables import TableWriter
from stages.readers.base import TableSource
from stages.readers.dataframe import dataframe_source
from stages.readers.files import file_source, find_files, label_files
from stages.readers.sql import sql_digest, sql_source

VERSION = 6

_COLUMN_HELP = 'Recognised by name if unset; "" uses no column.'


class Params(Base):
    """Which tables, which columns, how to cut and to split. Every column is recognised where none is named."""

    tables: tuple[str, ...] = option(
        (),
        "Tables to read: files, globs or URLs of CSV, TSV, JSONL, JSON, Parquet, Arrow or Excel. - is standard input.",
        is_path=True,
        exclude_from_key=True,
    )
    sql: str | None = option(
        None, "SELECT statement whose rows are the table. It needs database.", exclude_from_key=True
    )
    database: str | None = option(
        None,
        "Database for sql: sqlite:///path/to/file.db or postgresql://user@host/name.",
        exclude_from_key=True,
        is_path=True,
    )

    corpus: tuple[str, ...] = option(
        (), "Tables of further documents, without questions: files, globs or URLs.", is_path=True, exclude_from_key=True
    )
    beir: str | None = option(
        None,
        "Folder in BEIR format: corpus.jsonl, queries.jsonl and qrels/*.tsv.",
        advanced=True,
        is_path=True,
        exclude_from_key=True,
    )

    label_overrides: str | None = option(
        None,
        "File of decisions on single pairs, as `prep audit --out` writes it. They replace the tables' labels.",
        is_path=True,
        exclude_from_key=True,
    )

    question: str | None = option(None, "Column of the question. Recognised by name if unset.")
    document: str | None = option(
        None,
        "Column of the document that answers the question: a passage, or the answer itself. Recognised "
        "by name if unset.",
    )
    answer: str | None = option(None, f"Column of the short answer. {_COLUMN_HELP}")
    category: str | None = option(None, f"Column of the document's category. {_COLUMN_HELP}", advanced=True)
    group: str | None = option(None, f"Column whose equal values stay in one split, such as a thread. {_COLUMN_HELP}")
    id: str | None = option(None, f"Column of the question's id. {_COLUMN_HELP}", advanced=True)
    document_id: str | None = option(None, f"Column of the document's id. {_COLUMN_HELP}", advanced=True)
    title: str | None = option(None, f"Column of the document's title. {_COLUMN_HELP}", advanced=True)
    relevance: str | None = option(
        None, f"Column of relevance labels: above 0 a positive, 0 a curated negative. {_COLUMN_HELP}"
    )
    negatives_column: str | None = option(
        None, f"Column of texts that do not answer: curated negatives. {_COLUMN_HELP}", advanced=True
    )
    split: str | None = option(
        None, f"Column of the table's own split: train, dev or test. {_COLUMN_HELP}", advanced=True
    )
    value_separator: str | None = option(
        None, "Separator of several values in one cell, such as '|||'. JSON arrays need none.", flag=False
    )

    sheet: str | None = option(None, "Sheet of an Excel file. The first if unset.", advanced=True)
    encoding: str | None = option(None, "Encoding of text files, such as gb18030. UTF-8 if unset.", advanced=True)
    delimiter: str | None = option(None, "Delimiter of CSV files. Found in the header line if unset.", flag=False)

    chunk_words: int = option(
        0, "Cut documents into chunks of this many words. 0 leaves them whole.", advanced=True, ge=0
    )
    chunk_overlap: int = option(0, "Words that a chunk shares with the one before.", flag=False, ge=0)
    min_chars: int = option(2, "Reject questions and documents with fewer characters.", flag=False, ge=1)

    dev_ratio: float = option(
        0.1, "Share of the questions for dev, on which training chooses its best epoch.", advanced=True, ge=0, lt=1
    )
    test_ratio: float = option(
        0.1, "Share of the questions for test, on which evaluate measures.", advanced=True, ge=0, lt=1
    )
    split_by: Literal["component", "question", "group"] = option(
        "component",
        "What stays in one split: questions that share documents or groups, single questions, or groups.",
        advanced=True,
    )
    split_seed: int = option(0, "Seed of the split. Another seed gives another split.", flag=False)

    @field_validator("tables", "corpus", mode="before")
    @classmethod
    def _to_tuple(cls, given: Any) -> Any:
        return ((given,) if given else ()) if isinstance(given, str) else given

    @field_validator("sql", "database", "beir", "value_separator", "sheet", "encoding", "delimiter", mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        return None if given == "" else given  # for a column, an empty text means to use none

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.dev_ratio + self.test_ratio >= 1:
            raise ValueError(
                f"dev_ratio ({self.dev_ratio}) and test_ratio ({self.test_ratio}) leave nothing for train: "
                "their sum must be below 1"
            )
        if self.chunk_words and self.chunk_overlap >= self.chunk_words:
            raise ValueError(f"chunk_overlap ({self.chunk_overlap}) must be below chunk_words ({self.chunk_words})")
        if (self.sql is None) != (self.database is None):
            raise ValueError("sql and database go together: a query, and where to ask it")
        if self.delimiter is not None and len(_parse_delimiter(self.delimiter) or "") != 1:
            raise ValueError(f"delimiter must be one character (or \\t), not {self.delimiter!r}")
        return self


def key_extras(params: Params) -> dict[str, str]:
    """What the input is, by content: a digest for each file's name, and one for the rows of the SQL query."""
    digests: dict[str, str] = {}
    for kind, patterns in (("table", params.tables), ("corpus", params.corpus)):
        paths = find_files(patterns, "[pairs] tables" if kind == "table" else "[pairs] corpus")
        digests |= {f"{kind}:{label}": file_digest(path) for label, path in zip(label_files(paths), paths, strict=True)}
    if params.beir:
        folder = Path(params.beir).expanduser()
        digests |= {f"beir:{path.relative_to(folder)}": file_digest(path) for path in find_beir_files(folder)}
    if params.label_overrides:
        digests["label_overrides"] = file_digest(find_files([params.label_overrides], "[pairs] label_overrides")[0])
    if params.sql and params.database:
        digests["sql"] = sql_digest(params.database, params.sql)
    if not digests:
        raise InputError(
            "there is no input: set tables under [pairs] in prep.toml, or name a table, as in prep build-pairs faq.csv"
        )
    return digests


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write queries, corpus, qrels, answers and rejects into `out`; a table larger than memory is no trouble."""
    scratch = context.scratch_dir / "pairs"
    shutil.rmtree(scratch, ignore_errors=True)
    tables = _file_sources(params.tables, "[pairs] tables", params)
    if params.sql and params.database:
        tables.append(sql_source(params.database, params.sql, scratch / "sql.arrow"))
    corpora = _file_sources(params.corpus, "[pairs] corpus", params)
    beir = beir_sources(Path(params.beir).expanduser()) if params.beir else []
    try:
        return _build_tables(params, PairSources(tables, corpora, beir), out, scratch, context.progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class PairTables:
    """The pairs as frames, under the schemas of `stages.core.schemas`, with the funnel in `summary`."""

    queries: pl.DataFrame
    corpus: pl.DataFrame
    qrels: pl.DataFrame
    label_overrides: pl.DataFrame
    answers: pl.DataFrame
    rejects: pl.DataFrame
    summary: Summary


def build_pairs(frames: Any, params: Params | None = None) -> PairTables:
    """Pairs from a pandas or polars DataFrame, or a sequence of them, in Python.

    >>> import polars as pl
    >>> table = pl.DataFrame({"question": ["Who pays?"], "answer": ["The sender pays."]})
    >>> build_pairs(table).queries["query"].to_list()
    ['Who pays?']
    """
    several = list(frames) if isinstance(frames, (list, tuple)) else [frames]
    names = ["table" if len(several) == 1 else f"table {number}" for number in range(1, len(several) + 1)]
    sources = [dataframe_source(frame, name) for frame, name in zip(several, names, strict=True)]
    with tempfile.TemporaryDirectory(prefix="prep-pairs-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        params = params or Params()
        corpora = _file_sources(params.corpus, "[pairs] corpus", params)
        summary = _build_tables(params, PairSources(sources, corpora), out, Path(folder) / "scratch", NullProgress())
        tables = {path.stem: pl.read_parquet(path, memory_map=False) for path in out.iterdir()}
    return PairTables(**tables, summary=summary)


def _file_sources(patterns: Sequence[str], flag: str, params: Params) -> list[TableSource]:
    paths = find_files(patterns, flag)
    delimiter = _parse_delimiter(params.delimiter)
    pairs = zip(paths, label_files(paths), strict=True)
    return [file_source(path, label, params.encoding, delimiter, params.sheet) for path, label in pairs]


def _parse_delimiter(given: str | None) -> str | None:
    return "\t" if given == "\\t" else given


def _build_tables(params: Params, inputs: PairSources, out: Path, scratch: Path, progress: Progress) -> Summary:
    reject_writer = RejectWriter(out / "rejects.parquet")
    try:
        text_store = TextStore(scratch, params.chunk_words, params.chunk_overlap)
        ingester = Ingester(text_store, reject_writer, params.min_chars, params.value_separator)
        column_options = {role: getattr(params, role) for role in PAIR_ROLES}
        with pause_garbage_collection():
            columns, notes = ingest_sources(inputs, column_options, ingester, progress)
        overrides_path = (
            find_files([params.label_overrides], "[pairs] label_overrides")[0] if params.label_overrides else None
        )
        table_writer = TableWriter(ingester, reject_writer, inputs.all_sources, out, scratch)
        ratios = SplitRatios(params.dev_ratio, params.test_ratio, params.split_by, params.split_seed)
        counts = table_writer.write(
            ratios, f"column {columns.get('id')!r}", trust_ids=bool(params.id), overrides_path=overrides_path
        )
    finally:
        reject_writer.close()
    if n_large_cells := ingester.counts["cells over 1 MB"]:
        notes.append(f"{n_large_cells:,} cells are over 1 MB (kept whole)")
    if counts.get("positives_without_answer_chunk"):
        notes.append(
            f"{counts['positives_without_answer_chunk']:,} positives: no chunk holds an answer, so all chunks count"
        )
    notes += table_writer.notes
    for note in notes:
        progress.log(note)
    rejected = dict(sorted(reject_writer.counts.items()))
    return {"rows_in": ingester.counts["rows in"], "rejected": rejected, **counts, "columns": columns, "notes": notes}
