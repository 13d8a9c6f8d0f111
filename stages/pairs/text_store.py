"""The texts of the input, each kept about once on disk, known everywhere else by 64 bits of its hash."""

from pathlib import Path

import numpy as np
import polars as pl
import xxhash

from stages.core.text import loose
from stages.pairs.chunking import cut
from stages.pairs.external_sort import Spill, by_key

META = ("title", "category", "group")
Meta = tuple[str | None, str | None, str | None]
"""A document's title, category and group."""
NO_META: Meta = (None, None, None)

_SEEN = 500_000
_CUT = 1000


class TextStore:
    """Spills of questions, documents and answers, and frames of their keys (both may repeat a text).

    A text that was among the last half million is not spilled again; the rest of the repeats go when rows are sorted.
    With `words`, documents are cut into windows (`stages.pairs.chunking`), and `chunks` of a recent document can be
    had.
    """

    def __init__(self, scratch: Path, words: int, overlap: int) -> None:
        self.words, self.overlap = words, overlap
        self.queries = Spill(scratch / "queries")
        self.documents = Spill(scratch / "documents")
        self.answers = Spill(scratch / "answers")
        self.query_keys: list[pl.DataFrame] = []
        self.document_keys: list[pl.DataFrame] = []
        self._seen_queries: set[bytes] = set()
        self._seen_documents: set[bytes] = set()
        self._chunks: dict[bytes, list[str]] = {}
        self._new_queries: list[tuple[bytes, str]] = []
        self._new_documents: list[tuple[bytes, bytes, int, str, str | None, str | None, str | None]] = []
        self._new_answers: list[tuple[bytes, int, str]] = []

    def question(self, key: bytes, text: str) -> None:
        """Keep a clean question under its 128-bit hash."""
        if _unseen(self._seen_queries, key):
            self._new_queries.append((key, text))

    def document(self, key: bytes, alone: bytes, text: str, meta: Meta) -> None:
        """Keep a clean document with what is known of it: `key` is the 128-bit hash of what models read of it, title
        and text, `alone` that of the text."""
        known = key + xxhash.xxh3_64_digest("\x1f".join(part or "" for part in meta).encode()) if any(meta) else key
        if _unseen(self._seen_documents, known):
            chunks = len(self.chunks(alone, text)) if self.words else 1
            self._new_documents.append((key, alone, chunks, text, *meta))

    def chunks(self, alone: bytes, text: str) -> list[str]:
        """The windows of a document's text, whose hash is `alone`."""
        found = self._chunks.get(alone)
        if found is None:
            if len(self._chunks) >= _CUT:
                self._chunks.clear()
            found = self._chunks[alone] = cut(text, self.words, self.overlap)
        return found

    def answer(self, question: bytes, row: int, text: str) -> None:
        """Keep a clean answer to a question, said by a row."""
        self._new_answers.append((question, row, text))

    def flush(self) -> None:
        """Hand what is new to the spills; to be called after every batch."""
        if self._new_queries:
            keys, texts = zip(*self._new_queries, strict=True)
            restated = [xxhash.xxh3_64_intdigest((loose(text) or text).encode()) for text in texts]
            columns = {"key": high(keys), "low": low(keys), "loose": pl.Series(restated, dtype=pl.UInt64)}
            self.query_keys.append(pl.DataFrame(columns))
            self.queries.add(pl.DataFrame({"key": high(keys), "query": strings(texts)}), by_key())
        if self._new_documents:
            keys, alone, chunks, texts, *meta = zip(*self._new_documents, strict=True)
            columns = {"d": high(keys), "low": low(keys), "chunks": pl.Series(chunks, dtype=pl.Int32)}
            columns["text"] = high(alone)
            self.document_keys.append(pl.DataFrame(columns))
            known = {name: strings(cells) for name, cells in zip(META, meta, strict=True)}
            known |= {"d": columns["d"], "key": columns["text"], "text": strings(texts)}
            self.documents.add(pl.DataFrame(known), by_key())  # by text, so that those that merge are read together
        if self._new_answers:
            keys, rows, texts = zip(*self._new_answers, strict=True)
            self.answers.add(pl.DataFrame({"key": high(keys), "row": rows, "answer": strings(texts)}), by_key())
        self._new_queries, self._new_documents, self._new_answers = [], [], []


def strings(cells: tuple[str | None, ...]) -> pl.Series:
    """Texts as a column."""
    return pl.Series(cells, dtype=pl.String)


def high(digests: tuple[bytes, ...]) -> pl.Series:
    """The first 8 bytes of 128-bit digests as unsigned numbers: the keys."""
    return _half(digests, 0)


def low(digests: tuple[bytes, ...]) -> pl.Series:
    """The last 8 bytes of 128-bit digests as unsigned numbers."""
    return _half(digests, 1)


def _half(digests: tuple[bytes, ...], half: int) -> pl.Series:
    both = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
    return pl.Series(both[:, half].astype(np.uint64))


def _unseen(seen: set[bytes], entry: bytes) -> bool:
    if entry in seen:
        return False
    if len(seen) >= _SEEN:
        seen.clear()
    seen.add(entry)
    return True
