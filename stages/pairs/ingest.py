"""One pass over the input: each row becomes judgements of (question, document), or a reject with its reason."""

from collections import Counter
from collections.abc import Callable, Mapping

import polars as pl

from stages.core.errors import InputError
from stages.core.text import normalise
from stages.pairs.cells import BIG, Unusable, check, digest, long_enough, single, values
from stages.pairs.chunking import holding
from stages.pairs.columns import own_split, relevance
from stages.pairs.rejects import ROW_BITS, Rejects
from stages.pairs.text_store import META, NO_META, Meta, TextStore, high, strings
from stages.readers.base import Batch, Cell, Source

_NOT_GRADED = "relevance is not a whole number"


class Intake:
    """Takes batches in; what it has gathered are frames of numbers and ids, and the texts in a `TextStore`."""

    def __init__(self, texts: TextStore, rejects: Rejects, min_chars: int, separator: str | None) -> None:
        self.texts = texts
        self.counts: Counter[str] = Counter()
        self.judged: list[pl.DataFrame] = []
        """row, q, d, relevance, and where there are such columns id, document_id, split, group; chunk if cutting."""
        self.listed: list[pl.DataFrame] = []
        """row, d, document_id of documents without a question."""
        self.asked: list[pl.DataFrame] = []
        """row, q, id of questions whose judgements name them by id."""
        self.qrels: list[pl.DataFrame] = []
        """row, id, document_id, relevance, split: judgements by ids."""
        self._rejects = rejects
        self._min_chars = min_chars
        self._separator = separator
        self._rows: list[tuple[int, bytes, bytes, int, int, str | None, str | None, str | None, str | None]] = []

    def take_pairs(self, number: int, source: Source, batch: Batch, parts: Mapping[str, str]) -> None:
        """Take a batch of a table of pairs, source number `number`; `parts` says which column plays which part.

        Raises `InputError` where the table's own split holds a word that names no split.
        """
        self._each(number, source, batch, parts, self._pair)
        if self._rows:
            row, q, d, graded, chunk, *optional = zip(*self._rows, strict=True)
            frame = {"row": pl.Series(row), "q": high(q), "d": high(d), "relevance": pl.Series(graded, dtype=pl.Int32)}
            named = zip(("id", "document_id", "split", "group"), optional, strict=True)
            frame |= {name: strings(cells) for name, cells in named if name in parts}
            if self.texts.words:
                frame["chunk"] = pl.Series(chunk, dtype=pl.Int32)
            self.judged.append(pl.DataFrame(frame))
            self._rows = []

    def take_documents(self, number: int, source: Source, batch: Batch, parts: Mapping[str, str]) -> None:
        """Take a batch of documents without questions; one without a text has its title for text."""
        found: list[tuple[int, bytes, str | None]] = []

        def take(row: int, cells: Mapping[str, Cell]) -> None:
            text = single(cells.get("document"))
            if not text:
                text = single(cells.get("title"))
                cells = {**cells, "title": None}  # models would read it twice
            if not text:
                raise Unusable("no document")
            if not long_enough(text, self._min_chars):
                raise Unusable("document too short")
            meta = _meta(cells)
            alone = digest(text)
            d = _as_read(alone, text, meta)
            found.append((row, d, _text(cells, "document_id")))
            self.texts.document(d, alone, text, meta)

        self._each(number, source, batch, parts, take)
        if found:
            row, d, ids = zip(*found, strict=True)
            self.listed.append(pl.DataFrame({"row": row, "d": high(d), "document_id": strings(ids)}))

    def take_questions(self, number: int, source: Source, batch: Batch, parts: Mapping[str, str]) -> None:
        """Take a batch of questions whose judgements come from elsewhere (BEIR's queries.jsonl)."""
        found: list[tuple[int, bytes, str | None]] = []

        def take(row: int, cells: Mapping[str, Cell]) -> None:
            text, q = self._question(cells)
            found.append((row, q, _text(cells, "id")))
            self.texts.question(q, text)

        self._each(number, source, batch, parts, take)
        if found:
            row, q, ids = zip(*found, strict=True)
            self.asked.append(pl.DataFrame({"row": row, "q": high(q), "id": strings(ids)}))

    def take_qrels(self, number: int, source: Source, batch: Batch, parts: Mapping[str, str], split: str) -> None:
        """Take a batch of judgements that name both texts by their ids (BEIR's qrels)."""
        found: list[tuple[int, str, str, int]] = []

        def take(row: int, cells: Mapping[str, Cell]) -> None:
            grade = relevance(single(cells["relevance"]))
            if grade is None:
                raise Unusable(_NOT_GRADED)
            found.append((row, single(cells["id"]), single(cells["document_id"]), grade))

        self._each(number, source, batch, parts, take)
        schema = {"row": pl.Int64, "id": pl.String, "document_id": pl.String, "relevance": pl.Int32}
        self.qrels.append(pl.DataFrame(found, schema=schema, orient="row").with_columns(split=pl.lit(split)))

    def _each(
        self,
        number: int,
        source: Source,
        batch: Batch,
        parts: Mapping[str, str],
        take: Callable[[int, Mapping[str, Cell]], None],
    ) -> None:
        self.counts["rows in"] += len(batch.rows) + len(batch.rejected)
        for rejected in batch.rejected:
            self._rejects.add(source.label, rejected.row, rejected.reason, rejected.data)
        nothing: list[Cell] = [None] * len(batch.rows)
        columns = [batch.columns.get(column, nothing) for column in parts.values()]
        for column in columns:
            self.counts["cells over 1 MB"] += sum([cell is not None and len(cell) > BIG for cell in column])
        for i, (row, cells) in enumerate(zip(batch.rows, zip(*columns, strict=True), strict=True)):
            try:
                take((number << ROW_BITS) | row, dict(zip(parts, cells, strict=True)))
            except UnknownSplit as value:
                raise InputError(
                    f"{source.label}, row {row}, column {parts['split']!r}: {str(value)!r} is not a split. Use train, "
                    'dev (val, valid, validation), test, or nothing for train; or give --split "" to split by hash.'
                ) from None
            except Unusable as reason:
                data = {name: column[i] for name, column in batch.columns.items()}
                self._rejects.add(source.label, row, str(reason), data)
        self.texts.flush()

    def _pair(self, row: int, cells: Mapping[str, Cell]) -> None:
        question, q = self._question(cells)
        texts = values(cells.get("document"), self._separator)
        meta = _meta(cells)
        kept = [(text, digest(text)) for text in self._usable(texts, question)]
        grade = relevance(single(cells.get("relevance")))
        if grade is None:
            raise Unusable(_NOT_GRADED)
        said = single(cells.get("split"))
        split = own_split(said)
        if split is None:
            raise UnknownSplit(said)
        answers = values(cells.get("answer"), self._separator)
        negatives = [
            (text, digest(text))
            for text in values(cells.get("negatives"), self._separator)
            if text != question and long_enough(text, self._min_chars)
        ]
        for text in answers:
            check(text)
        by_text: dict[str, str] = {}
        if ids := values(cells.get("document_id")):
            if len(ids) != len(texts):
                raise Unusable("not as many document ids as documents")
            by_text = dict(zip(texts, ids, strict=True))
        query_id = _text(cells, "id")

        self.texts.question(q, question)  # from here on nothing is wrong with the row
        for text, alone in kept:
            d = _as_read(alone, text, meta)
            self.texts.document(d, alone, text, meta)
            places = [-1]  # of the document's chunks, those that hold an answer; -1 where none or no matter
            if self.texts.words and grade and answers:
                places = holding(self.texts.chunks(alone, text), answers) or places
            for place in places:
                self._rows.append((row, q, d, grade, place, query_id, by_text.get(text), split, meta[2]))
        for text, d in negatives:
            self.texts.document(d, d, text, NO_META)
            self._rows.append((row, q, d, 0, -1, query_id, None, split, meta[2]))
        for text in answers:
            self.texts.answer(q, row, text)

    def _question(self, cells: Mapping[str, Cell]) -> tuple[str, bytes]:
        cell = cells.get("question") or ""
        if isinstance(cell, list):
            if len(cell) > 1:
                raise Unusable("several questions in one cell")
            cell = cell[0]
        text = normalise(cell)
        if not text:
            raise Unusable("no question")
        if not long_enough(text, self._min_chars):
            raise Unusable("question too short")
        return text, digest(text)

    def _usable(self, texts: list[str], question: str) -> list[str]:
        if not texts:
            raise Unusable("no document")
        texts = [text for text in texts if long_enough(text, self._min_chars)]
        if not texts:
            raise Unusable("document too short")
        texts = [text for text in texts if text != question]
        if not texts:
            raise Unusable("document is the question")
        return texts


class UnknownSplit(Exception):
    """A value of the split column that names no split."""


def _meta(cells: Mapping[str, Cell]) -> Meta:
    title, category, group = META
    if title in cells or category in cells or group in cells:
        return _text(cells, title), _text(cells, category), _text(cells, group)
    return NO_META


def _as_read(alone: bytes, text: str, meta: Meta) -> bytes:
    """The digest of a document as models read it, title first (`stages.core.schemas.document_text`)."""
    return digest(f"{meta[0]} {text}") if meta[0] else alone


def _text(cells: Mapping[str, Cell], part: str) -> str | None:
    return single(cells.get(part)) or None
