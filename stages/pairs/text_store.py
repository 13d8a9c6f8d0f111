"""The texts of the input, each stored about once on disk; all other code uses 64 bits of a text's hash."""

from pathlib import Path

import numpy as np
import polars as pl
import xxhash

from stages.core.text import match_key
from stages.pairs.chunking import chunk_text
from stages.pairs.external_sort import SpillBuffer, key_bucket

METADATA_COLUMNS = ("title", "category", "group")
DocumentMetadata = tuple[str | None, str | None, str | None]
"""A document's title, category and group."""
NO_METADATA: DocumentMetadata = (None, None, None)

_MAX_SEEN_KEYS = 500_000
_MAX_CACHED_DOCUMENTS = 1000


class TextStore:
    """Spill buffers of queries, documents and answers, and frames of their keys (both may repeat a text).

    A text that was among the last half million is not spilled again; other repetitions are removed when rows are
    sorted. With `chunk_words`, documents are cut into chunks (`stages.pairs.chunking`).
    """

    def __init__(self, scratch_dir: Path, chunk_words: int, chunk_overlap: int) -> None:
        self.chunk_words, self.chunk_overlap = chunk_words, chunk_overlap
        self.queries = SpillBuffer(scratch_dir / "queries")
        self.documents = SpillBuffer(scratch_dir / "documents")
        self.answers = SpillBuffer(scratch_dir / "answers")
        self.query_keys: list[pl.DataFrame] = []
        self.document_keys: list[pl.DataFrame] = []
        self._seen_queries: set[bytes] = set()
        self._seen_documents: set[bytes] = set()
        self._chunks: dict[bytes, list[str]] = {}
        self._new_queries: list[tuple[bytes, str]] = []
        self._new_documents: list[tuple[bytes, bytes, int, str, str | None, str | None, str | None]] = []
        self._new_answers: list[tuple[bytes, int, str]] = []

    def add_query(self, key: bytes, text: str) -> None:
        """Store a clean query under its 128-bit hash."""
        if _add_if_unseen(self._seen_queries, key):
            self._new_queries.append((key, text))

    def add_document(self, key: bytes, text_key: bytes, text: str, metadata: DocumentMetadata) -> None:
        """Store a clean document: `key` is the 128-bit hash of title and text as models read them, `text_key` that of
        the text."""
        entry = key
        if any(metadata):
            entry += xxhash.xxh3_64_digest("\x1f".join(part or "" for part in metadata).encode())
        if _add_if_unseen(self._seen_documents, entry):
            chunks = len(self.get_chunks(text_key, text)) if self.chunk_words else 1
            self._new_documents.append((key, text_key, chunks, text, *metadata))

    def get_chunks(self, text_key: bytes, text: str) -> list[str]:
        """The chunks of a document's text, whose hash is `text_key`."""
        if text_key not in self._chunks:
            if len(self._chunks) >= _MAX_CACHED_DOCUMENTS:
                self._chunks.clear()
            self._chunks[text_key] = chunk_text(text, self.chunk_words, self.chunk_overlap)
        return self._chunks[text_key]

    def add_answer(self, query_key: bytes, row: int, text: str) -> None:
        """Store the clean answer of a row to a query."""
        self._new_answers.append((query_key, row, text))

    def flush(self) -> None:
        """Move the new texts to the spill buffers; call this after every batch."""
        if self._new_queries:
            keys, texts = zip(*self._new_queries, strict=True)
            match_keys = [xxhash.xxh3_64_intdigest(match_key(text).encode()) for text in texts]
            columns = {
                "key": upper_64_bits(keys),
                "low": lower_64_bits(keys),
                "match_key": pl.Series(match_keys, dtype=pl.UInt64),
            }
            self.query_keys.append(pl.DataFrame(columns))
            self.queries.add(pl.DataFrame({"key": upper_64_bits(keys), "query": to_string_series(texts)}), key_bucket())
        if self._new_documents:
            keys, text_keys, chunks, texts, *metadata = zip(*self._new_documents, strict=True)
            columns = {
                "d": upper_64_bits(keys),
                "low": lower_64_bits(keys),
                "chunks": pl.Series(chunks, dtype=pl.Int32),
                "text": upper_64_bits(text_keys),
            }
            self.document_keys.append(pl.DataFrame(columns))
            rows = {name: to_string_series(cells) for name, cells in zip(METADATA_COLUMNS, metadata, strict=True)}
            rows |= {"d": columns["d"], "key": columns["text"], "text": to_string_series(texts)}
            self.documents.add(pl.DataFrame(rows), key_bucket())  # bucketed by text: documents that merge share one
        if self._new_answers:
            keys, row_numbers, texts = zip(*self._new_answers, strict=True)
            self.answers.add(
                pl.DataFrame({"key": upper_64_bits(keys), "row": row_numbers, "answer": to_string_series(texts)}),
                key_bucket(),
            )
        self._new_queries, self._new_documents, self._new_answers = [], [], []


def to_string_series(cells: tuple[str | None, ...]) -> pl.Series:
    """Texts as a column."""
    return pl.Series(cells, dtype=pl.String)


def upper_64_bits(digests: tuple[bytes, ...]) -> pl.Series:
    """The first 8 bytes of 128-bit digests as unsigned numbers: the keys."""
    return _digest_half(digests, 0)


def lower_64_bits(digests: tuple[bytes, ...]) -> pl.Series:
    """The last 8 bytes of 128-bit digests as unsigned numbers."""
    return _digest_half(digests, 1)


def _digest_half(digests: tuple[bytes, ...], half: int) -> pl.Series:
    both = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
    return pl.Series(both[:, half].astype(np.uint64))


def _add_if_unseen(seen: set[bytes], entry: bytes) -> bool:
    if entry in seen:
        return False
    if len(seen) >= _MAX_SEEN_KEYS:
        seen.clear()
    seen.add(entry)
    return True
