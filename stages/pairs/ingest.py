"""One pass over the input: each row becomes judgements of (question, document), or a reject with its reason."""

from collections import Counter
from collections.abc import Callable, Mapping

import polars as pl

from stages.core.errors import InputError
from stages.core.text import normalise
from stages.pairs.cells import (
    LARGE_CELL_CHARS,
    UnusableRowError,
    check_text,
    is_long_enough,
    parse_text,
    parse_texts,
    text_digest,
)
from stages.pairs.chunking import find_answer_chunks
from stages.pairs.columns import parse_relevance, parse_split
from stages.pairs.rejects import ROW_NUMBER_BITS, RejectWriter
from stages.pairs.text_store import (
    METADATA_COLUMNS,
    NO_METADATA,
    DocumentMetadata,
    TextStore,
    to_string_series,
    upper_64_bits,
)
from stages.readers.base import Cell, RowBatch, TableSource

_INVALID_RELEVANCE = "relevance is not a whole number"


class Ingester:
    """Takes batches in; what it has gathered are frames of numbers and ids, and the texts in a `TextStore`."""

    def __init__(self, text_store: TextStore, reject_writer: RejectWriter, separator: str | None) -> None:
        self.text_store = text_store
        self.counts: Counter[str] = Counter()
        self.qrels: list[pl.DataFrame] = []
        """row, q, d, relevance; id, document_id, split and group if the table has them; chunk if documents are cut."""
        self.standalone_documents: list[pl.DataFrame] = []
        """row, d, document_id of documents without a question."""
        self.standalone_queries: list[pl.DataFrame] = []
        """row, q, id of queries whose qrels are given by ids."""
        self.id_qrels: list[pl.DataFrame] = []
        """row, id, document_id, relevance, split: qrels by ids."""
        self._reject_writer = reject_writer
        self._separator = separator
        self._rows: list[tuple[int, bytes, bytes, int, int, str | None, str | None, str | None, str | None]] = []

    def add_pairs(
        self, source_number: int, source: TableSource, batch: RowBatch, column_by_role: Mapping[str, str]
    ) -> None:
        """Add a batch of a table of pairs with the number `source_number`; `column_by_role`: role -> column.

        Raises `InputError` if a cell of the split column names no split.
        """
        self._process_batch(source_number, source, batch, column_by_role, self._add_pair)
        if self._rows:
            row, q, d, relevance, chunk, *optional = zip(*self._rows, strict=True)
            frame = {
                "row": pl.Series(row),
                "q": upper_64_bits(q),
                "d": upper_64_bits(d),
                "relevance": pl.Series(relevance, dtype=pl.Int32),
            }
            named = zip(("id", "document_id", "split", "group"), optional, strict=True)
            frame |= {name: to_string_series(cells) for name, cells in named if name in column_by_role}
            if self.text_store.chunk_words:
                frame["chunk"] = pl.Series(chunk, dtype=pl.Int32)
            self.qrels.append(pl.DataFrame(frame))
            self._rows = []

    def add_documents(
        self, source_number: int, source: TableSource, batch: RowBatch, column_by_role: Mapping[str, str]
    ) -> None:
        """Add a batch of documents without questions; the title of a document without a text becomes its text."""
        found: list[tuple[int, bytes, str | None]] = []

        def add_row(row: int, cells: Mapping[str, Cell]) -> None:
            text = parse_text(cells.get("document"))
            if not text:
                text = parse_text(cells.get("title"))
                cells = {**cells, "title": None}  # models would read it twice
            if not text:
                raise UnusableRowError("no document")
            if not is_long_enough(text):
                raise UnusableRowError("document too short")
            meta = _parse_metadata(cells)
            text_key = text_digest(text)
            d = _document_digest(text_key, text, meta)
            found.append((row, d, _parse_optional_text(cells, "document_id")))
            self.text_store.add_document(d, text_key, text, meta)

        self._process_batch(source_number, source, batch, column_by_role, add_row)
        if found:
            row, d, ids = zip(*found, strict=True)
            self.standalone_documents.append(
                pl.DataFrame({"row": row, "d": upper_64_bits(d), "document_id": to_string_series(ids)})
            )

    def add_queries(
        self, source_number: int, source: TableSource, batch: RowBatch, column_by_role: Mapping[str, str]
    ) -> None:
        """Add a batch of questions whose qrels are in another file (BEIR's queries.jsonl)."""
        found: list[tuple[int, bytes, str | None]] = []

        def add_row(row: int, cells: Mapping[str, Cell]) -> None:
            text, q = self._parse_query(cells)
            found.append((row, q, _parse_optional_text(cells, "id")))
            self.text_store.add_query(q, text)

        self._process_batch(source_number, source, batch, column_by_role, add_row)
        if found:
            row, q, ids = zip(*found, strict=True)
            self.standalone_queries.append(
                pl.DataFrame({"row": row, "q": upper_64_bits(q), "id": to_string_series(ids)})
            )

    def add_qrels(
        self, source_number: int, source: TableSource, batch: RowBatch, column_by_role: Mapping[str, str], split: str
    ) -> None:
        """Add a batch of qrels by ids (BEIR's qrels)."""
        found: list[tuple[int, str, str, int]] = []

        def add_row(row: int, cells: Mapping[str, Cell]) -> None:
            grade = parse_relevance(parse_text(cells["relevance"]))
            if grade is None:
                raise UnusableRowError(_INVALID_RELEVANCE)
            found.append((row, parse_text(cells["id"]), parse_text(cells["document_id"]), grade))

        self._process_batch(source_number, source, batch, column_by_role, add_row)
        schema = {"row": pl.Int64, "id": pl.String, "document_id": pl.String, "relevance": pl.Int32}
        self.id_qrels.append(pl.DataFrame(found, schema=schema, orient="row").with_columns(split=pl.lit(split)))

    def _process_batch(
        self,
        source_number: int,
        source: TableSource,
        batch: RowBatch,
        column_by_role: Mapping[str, str],
        add_row: Callable[[int, Mapping[str, Cell]], None],
    ) -> None:
        self.counts["rows in"] += len(batch.row_numbers) + len(batch.rejected_rows)
        for rejected in batch.rejected_rows:
            self._reject_writer.add(source.label, rejected.row_number, rejected.reason, rejected.data)
        no_cells: list[Cell] = [None] * len(batch.row_numbers)
        columns = [batch.columns.get(column, no_cells) for column in column_by_role.values()]
        for column in columns:
            self.counts["cells over 1 MB"] += sum(
                [cell is not None and len(cell) > LARGE_CELL_CHARS for cell in column]
            )
        for i, (row, cells) in enumerate(zip(batch.row_numbers, zip(*columns, strict=True), strict=True)):
            try:
                add_row((source_number << ROW_NUMBER_BITS) | row, dict(zip(column_by_role, cells, strict=True)))
            except UnknownSplitError as value:
                raise InputError(
                    f"{source.label}, row {row}, column {column_by_role['split']!r}: {str(value)!r} is not a split. "
                    f"Use train, "
                    'dev (val, valid, validation), test, or nothing for train; or give --split "" to split by hash.'
                ) from None
            except UnusableRowError as reason:
                data = {name: column[i] for name, column in batch.columns.items()}
                self._reject_writer.add(source.label, row, str(reason), data)
        self.text_store.flush()

    def _add_pair(self, row: int, cells: Mapping[str, Cell]) -> None:
        query, q = self._parse_query(cells)
        texts = parse_texts(cells.get("document"), self._separator)
        meta = _parse_metadata(cells)
        documents = [(text, text_digest(text)) for text in self._usable_documents(texts, query)]
        grade = parse_relevance(parse_text(cells.get("relevance")))
        if grade is None:
            raise UnusableRowError(_INVALID_RELEVANCE)
        split_cell = parse_text(cells.get("split"))
        split = parse_split(split_cell)
        if split is None:
            raise UnknownSplitError(split_cell)
        answers = parse_texts(cells.get("answer"), self._separator)
        negatives = [
            (text, text_digest(text))
            for text in parse_texts(cells.get("negatives_column"), self._separator)
            if text != query and is_long_enough(text)
        ]
        for text in answers:
            check_text(text)
        id_by_text: dict[str, str] = {}
        if ids := parse_texts(cells.get("document_id")):
            if len(ids) != len(texts):
                raise UnusableRowError("not as many document ids as documents")
            id_by_text = dict(zip(texts, ids, strict=True))
        query_id = _parse_optional_text(cells, "id")

        self.text_store.add_query(q, query)  # after this the row is not rejected
        for text, text_key in documents:
            d = _document_digest(text_key, text, meta)
            self.text_store.add_document(d, text_key, text, meta)
            chunks = [-1]  # the document's chunks that contain an answer; -1 if none does or documents are not cut
            if self.text_store.chunk_words and grade and answers:
                chunks = find_answer_chunks(self.text_store.get_chunks(text_key, text), answers) or chunks
            for chunk in chunks:
                self._rows.append((row, q, d, grade, chunk, query_id, id_by_text.get(text), split, meta[2]))
        for text, d in negatives:
            self.text_store.add_document(d, d, text, NO_METADATA)
            self._rows.append((row, q, d, 0, -1, query_id, None, split, meta[2]))
        for text in answers:
            self.text_store.add_answer(q, row, text)

    def _parse_query(self, cells: Mapping[str, Cell]) -> tuple[str, bytes]:
        cell = cells.get("question") or ""
        if isinstance(cell, list):
            if len(cell) > 1:
                raise UnusableRowError("several questions in one cell")
            cell = cell[0]
        text = normalise(cell)
        if not text:
            raise UnusableRowError("no question")
        if not is_long_enough(text):
            raise UnusableRowError("question too short")
        return text, text_digest(text)

    def _usable_documents(self, texts: list[str], query: str) -> list[str]:
        if not texts:
            raise UnusableRowError("no document")
        texts = [text for text in texts if is_long_enough(text)]
        if not texts:
            raise UnusableRowError("document too short")
        texts = [text for text in texts if text != query]
        if not texts:
            raise UnusableRowError("document is the question")
        return texts


class UnknownSplitError(Exception):
    """A value of the split column that names no split."""


def _parse_metadata(cells: Mapping[str, Cell]) -> DocumentMetadata:
    title, category, group = METADATA_COLUMNS
    if title in cells or category in cells or group in cells:
        return (
            _parse_optional_text(cells, title),
            _parse_optional_text(cells, category),
            _parse_optional_text(cells, group),
        )
    return NO_METADATA


def _document_digest(text_key: bytes, text: str, meta: DocumentMetadata) -> bytes:
    """The digest of a document as models read it, title first (`stages.core.schemas.document_text`)."""
    return text_digest(f"{meta[0]} {text}") if meta[0] else text_key


def _parse_optional_text(cells: Mapping[str, Cell], role: str) -> str | None:
    return parse_text(cells.get(role)) or None
