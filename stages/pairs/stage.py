"""Pairs: tables of questions and documents become queries, corpus, qrels and answers, cleaned, merged and split."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl
from pydantic import field_validator, model_validator

from stages.core.errors import InputError
from stages.core.model_files import file_digest
from stages.core.params import Params as Base
from stages.core.params import option
from stages.core.schemas import Progress, Summary, Tools
from stages.pairs.beir import beir_files, beir_sources
from stages.pairs.columns import PAIR_PARTS
from stages.pairs.ingest import Intake
from stages.pairs.rejects import Rejects
from stages.pairs.sources import Inputs, no_collector, take_all
from stages.pairs.split import Shares
from stages.pairs.text_store import TextStore
from stages.pairs.write_tables import Assembler
from stages.readers.base import Source
from stages.readers.dataframe import frame_source
from stages.readers.files import file_source, find_files, labels
from stages.readers.sql import sql_digest, sql_source

VERSION = 5

_COLUMN = 'Recognised by its usual names where not given; "" uses no column.'


class Params(Base):
    """Which tables, which columns, how to cut and to split. Every column is recognised where none is named."""

    tables: tuple[str, ...] = option(
        (),
        "Files, globs or URLs (s3://bucket/faq-*.parquet): CSV, TSV, JSONL, JSON, Parquet, Arrow, Excel; text also "
        "gzip'd; - is standard input.",
        path=True,
        unkeyed=True,
    )
    sql: str | None = option(None, "A SELECT whose rows are the table; needs --database.", unkeyed=True)
    database: str | None = option(
        None, "Where to ask sql: sqlite:///path/to/file.db or postgresql://user@host/name.", unkeyed=True, path=True
    )

    corpus: tuple[str, ...] = option(
        (), "Files, globs or URLs of further documents, with no question.", path=True, unkeyed=True
    )
    beir: str | None = option(None, "A BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv.", path=True, unkeyed=True)

    decisions: str | None = option(
        None,
        "What people decided about single pairs, as JSON Lines or CSV: query_id, doc_id, label (positive or negative; "
        "empty: not decided). What `prep audit --out` writes is such a file.",
        path=True,
        unkeyed=True,
    )

    question: str | None = option(None, "Column of the question.")
    document: str | None = option(
        None, "Column of the document that answers it: a context (Q-D pairs) or the answer itself (Q-A pairs)."
    )
    answer: str | None = option(None, f"Column of the short answer. {_COLUMN}")
    category: str | None = option(None, f"Column of the document's category. {_COLUMN}")
    group: str | None = option(None, f"Column whose equal values stay on one side of the split. {_COLUMN}")
    id: str | None = option(None, f"Column of the question's id; else ids are hashes of the text. {_COLUMN}")
    document_id: str | None = option(None, f"Column of the document's id. {_COLUMN}")
    title: str | None = option(None, f"Column of the document's title. {_COLUMN}")
    relevance: str | None = option(None, f"Column of judgements: above 0 a positive, 0 a curated negative. {_COLUMN}")
    negatives: str | None = option(None, f"Column of texts that do not answer: curated negatives. {_COLUMN}")
    split: str | None = option(None, f"Column of the table's own split: train, dev, test. {_COLUMN}")
    value_separator: str | None = option(
        None, "What stands between several values in one cell, such as '|||' (JSON arrays are known without it)."
    )

    sheet: str | None = option(None, "Excel sheet; the first where not given.")
    encoding: str | None = option(None, "Encoding of text files, such as gb18030; UTF-8 where not given.")
    delimiter: str | None = option(
        None, "What stands between the cells of CSV files; told from the header where not given."
    )

    chunk_words: int = option(
        0, "Cut documents into windows of this many words; 0 does not cut. A Han or kana character is a word.", ge=0
    )
    chunk_overlap: int = option(0, "Words that a window shares with the one before.", ge=0)
    min_chars: int = option(
        2, "Questions and documents with fewer characters are set aside; a Han or kana character counts as two.", ge=1
    )

    dev: float = option(0.1, "Share of the units that goes to dev; 0.1 is the custom.", ge=0, lt=1)
    test: float = option(0.1, "Share of the units that goes to test; 0.1 is the custom.", ge=0, lt=1)
    split_by: Literal["component", "question", "group"] = option(
        "component", "What stays together: all that shares documents, questions or groups; a question; or a group."
    )
    seed: int = option(0, "Another number draws another split.")

    @field_validator("tables", "corpus", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return ((given,) if given else ()) if isinstance(given, str) else given

    @field_validator("sql", "database", "beir", "value_separator", "sheet", "encoding", "delimiter", mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        return None if given == "" else given  # for a column, an empty text means to use none

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.dev + self.test >= 1:
            raise ValueError(
                f"dev ({self.dev}) and test ({self.test}) leave nothing for train: their sum must be below 1"
            )
        if self.chunk_words and self.chunk_overlap >= self.chunk_words:
            raise ValueError(f"chunk_overlap ({self.chunk_overlap}) must be below chunk_words ({self.chunk_words})")
        if (self.sql is None) != (self.database is None):
            raise ValueError("sql and database go together: a query, and where to ask it")
        if self.delimiter is not None and len(_delimiter(self.delimiter) or "") != 1:
            raise ValueError(f"delimiter must be one character (or \\t), not {self.delimiter!r}")
        return self


def identity(params: Params) -> dict[str, str]:
    """What the input is, by content: a digest for each file's name, and one for the rows of the SQL query."""
    found: dict[str, str] = {}
    for kind, patterns in (("table", params.tables), ("corpus", params.corpus)):
        paths = find_files(patterns, f"--{kind}s" if kind == "table" else "--corpus")
        found |= {f"{kind}:{label}": file_digest(path) for label, path in zip(labels(paths), paths, strict=True)}
    if params.beir:
        folder = Path(params.beir).expanduser()
        found |= {f"beir:{path.relative_to(folder)}": file_digest(path) for path in beir_files(folder)}
    if params.decisions:
        found["decisions"] = file_digest(find_files([params.decisions], "--decisions")[0])
    if params.sql and params.database:
        found["sql"] = sql_digest(params.database, params.sql)
    if not found:
        raise InputError("there is no input: name a table in prep.toml ([pairs] tables) or on the command line")
    return found


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write queries, corpus, qrels, answers and rejects into `out`; a table larger than memory is no trouble."""
    scratch = tools.scratch / "pairs"
    shutil.rmtree(scratch, ignore_errors=True)
    tables = _file_sources(params.tables, "--tables", params)
    if params.sql and params.database:
        tables.append(sql_source(params.database, params.sql, scratch / "sql.arrow"))
    corpora = _file_sources(params.corpus, "--corpus", params)
    beir = beir_sources(Path(params.beir).expanduser()) if params.beir else []
    try:
        return _build(params, Inputs(tables, corpora, beir), out, scratch, tools.progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Pairs:
    """The pairs as frames, under the schemas of `stages.core.schemas`, with the funnel in `summary`."""

    queries: pl.DataFrame
    corpus: pl.DataFrame
    qrels: pl.DataFrame
    decided: pl.DataFrame
    answers: pl.DataFrame
    rejects: pl.DataFrame
    summary: Summary


def build_pairs(frames: Any, params: Params | None = None) -> Pairs:
    """Pairs from a pandas or polars DataFrame, or a sequence of them, in Python.

    >>> import polars as pl
    >>> table = pl.DataFrame({"question": ["Who pays?"], "answer": ["The sender pays."]})
    >>> build_pairs(table).queries["query"].to_list()
    ['Who pays?']
    """
    several = list(frames) if isinstance(frames, (list, tuple)) else [frames]
    names = ["table" if len(several) == 1 else f"table {number}" for number in range(1, len(several) + 1)]
    sources = [frame_source(frame, name) for frame, name in zip(several, names, strict=True)]
    with tempfile.TemporaryDirectory(prefix="prep-pairs-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        params = params or Params()
        corpora = _file_sources(params.corpus, "--corpus", params)
        summary = _build(params, Inputs(sources, corpora), out, Path(folder) / "scratch", _Silent())
        tables = {path.stem: pl.read_parquet(path, memory_map=False) for path in out.iterdir()}
    return Pairs(**tables, summary=summary)


def funnel_lines(summary: Summary) -> list[str]:
    """The funnel as lines to print: rows in, each loss by its reason, and what came of the rest."""
    rows = [("rows in", summary["rows_in"])]
    rows += [(f"  {reason}", -count) for reason, count in summary["rejected"].items()]
    if summary["rows_of_one_text"]:
        rows.append(("  of a document or a question alone", -summary["rows_of_one_text"]))
    rows += [
        ("rows used as pairs", summary["rows_used"]),
        ("  merged into an equal question", summary["merged_questions"]),
        ("  merged into an equal document", summary["merged_documents"]),
        ("queries", summary["queries"]),
        *((f"  {name}", count) for name, count in summary["splits"].items()),
    ]
    told = {"shared_questions": "  restated on another side of the split"}
    told |= {"documents": "documents", "chunks": "  in chunks"}
    told |= {"shared_documents": "  positive on two sides of the split", "curated_negatives": "curated negatives"}
    told |= {"decided": "decided by people"}
    rows += [(name, summary[count]) for count, name in told.items() if summary[count]]
    width = max(len(name) for name, _ in rows)
    figures = [f"{count:,}" for _, count in rows]
    per = summary["positives_per_query"]
    mean = f"{per['mean']:.2f}"
    wide = max(map(len, [*figures, mean]))
    lines = [f"{name:<{width}}  {figure:>{wide}}" for (name, _), figure in zip(rows, figures, strict=True)]
    return [*lines, f"{'positives a query':<{width}}  {mean:>{wide}}  (at most {per['max']})"]


class _Silent:
    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        pass

    def say(self, message: str) -> None:
        pass


def _file_sources(patterns: Sequence[str], flag: str, params: Params) -> list[Source]:
    paths = find_files(patterns, flag)
    delimiter = _delimiter(params.delimiter)
    pairs = zip(paths, labels(paths), strict=True)
    return [file_source(path, label, params.encoding, delimiter, params.sheet) for path, label in pairs]


def _delimiter(given: str | None) -> str | None:
    return "\t" if given == "\\t" else given


def _build(params: Params, inputs: Inputs, out: Path, scratch: Path, progress: Progress) -> Summary:
    rejects = Rejects(out / "rejects.parquet")
    try:
        texts = TextStore(scratch, params.chunk_words, params.chunk_overlap)
        intake = Intake(texts, rejects, params.min_chars, params.value_separator)
        named = {part: getattr(params, part) for part in PAIR_PARTS}
        with no_collector():
            columns, notes = take_all(inputs, named, intake, progress)
        decisions = find_files([params.decisions], "--decisions")[0] if params.decisions else None
        assembler = Assembler(intake, rejects, inputs.all, out, scratch)
        shares = Shares(params.dev, params.test, params.split_by, params.seed)
        counts = assembler.write(
            shares, f"column {columns.get('id')!r}", trust_ids=bool(params.id), decisions=decisions
        )
    finally:
        rejects.close()
    if big := intake.counts["cells over 1 MB"]:
        notes.append(f"{big:,} cells are over 1 MB (kept whole)")
    if counts.get("positives_by_all_chunks"):
        notes.append(f"{counts['positives_by_all_chunks']:,} positives: no chunk holds an answer, so all chunks count")
    notes += assembler.notes
    for note in notes:
        progress.say(note)
    rejected = dict(sorted(rejects.counts.items()))
    return {"rows_in": intake.counts["rows in"], "rejected": rejected, **counts, "columns": columns, "notes": notes}
