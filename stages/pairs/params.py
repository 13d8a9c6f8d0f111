"""The parameters of the pairs stage."""

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from stages.core.params import BaseParams, option

_COLUMN_HELP = 'Recognised by name if unset; "" uses no column.'


class Params(BaseParams):
    """The tables, their columns, and how documents are cut and queries split. Unset columns are recognised by name."""

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
        if self.delimiter is not None and len(self.parse_delimiter() or "") != 1:
            raise ValueError(f"delimiter must be one character (or \\t), not {self.delimiter!r}")
        return self

    def parse_delimiter(self) -> str | None:
        """The delimiter as one character: a tab may be written as \\t."""
        return "\t" if self.delimiter == "\\t" else self.delimiter
