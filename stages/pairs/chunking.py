"""Cut long documents into chunks of words, and find the chunks that contain an answer."""

import re
from collections.abc import Sequence

import polars as pl

from stages.core.errors import InputError
from stages.core.text import casefold_words
from stages.pairs.cells import CJK_RANGES

_WORD = re.compile(f"[{CJK_RANGES}]|[^\\s{CJK_RANGES}]+")


def chunk_text(text: str, chunk_words: int, chunk_overlap: int) -> list[str]:
    """Chunks of `chunk_words` words; each starts `chunk_words - chunk_overlap` words after the previous one.

    A short text is one chunk. A Chinese or Japanese character counts as a word. The last chunk ends with the text, and
    no chunk is inside another.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if len(spans) <= chunk_words:
        return [text]
    starts = range(0, len(spans) - chunk_overlap, chunk_words - chunk_overlap)
    return [text[spans[start][0] : spans[min(start + chunk_words, len(spans)) - 1][1]] for start in starts]


def chunk_documents(documents: pl.DataFrame, chunk_words: int, chunk_overlap: int) -> pl.DataFrame:
    """Documents (column `text`) cut into chunks, numbered in `chunk`; not cut, with number 0, if `chunk_words` is 0."""
    if not chunk_words:
        return documents.with_columns(chunk=pl.lit(0, dtype=pl.Int32))
    chunks = [chunk_text(text, chunk_words, chunk_overlap) for text in documents["text"]]
    numbers = [list(range(len(parts))) for parts in chunks]
    return documents.with_columns(
        text=pl.Series(chunks, dtype=pl.List(pl.String)), chunk=pl.Series(numbers, dtype=pl.List(pl.Int32))
    ).explode("text", "chunk")


def find_answer_chunks(chunks: Sequence[str], answers: Sequence[str]) -> list[int]:
    """The indices of the chunks that contain one of the answers, as whole words, without case and punctuation.

    >>> find_answer_chunks(["It began in 1973.", "Oil rose."], ["in 1973"])
    [0]
    """
    answer_keys = [(text, bool(re.search(f"[{CJK_RANGES}]", text))) for text in map(casefold_words, answers) if text]
    found = []
    for index, chunk in enumerate(chunks):
        text = f" {casefold_words(chunk)} "
        if any((answer if is_cjk else f" {answer} ") in text for answer, is_cjk in answer_keys):
            found.append(index)
    return found


def build_corpus_rows(documents: pl.DataFrame, is_chunked: bool) -> pl.DataFrame:
    """The rows of the corpus in order: document_index, d, chunk, position, doc_id. A single chunk keeps the id of its
    document."""
    frame = documents
    if is_chunked:
        frame = frame.with_columns(chunk=pl.int_ranges(0, "chunks", dtype=pl.Int32)).explode("chunk")
        numbered = pl.when(pl.col("chunks") > 1).then(pl.format("{}#{}", "doc_id", "chunk")).otherwise("doc_id")
        frame = frame.with_columns(doc_id=numbered).sort("doc_id")
        if frame["doc_id"].n_unique() != len(frame):
            duplicate_id = frame.filter(pl.col("doc_id").is_duplicated())["doc_id"][0]
            raise InputError(
                f"the document id {duplicate_id!r} is also the id of a chunk of another document: rename one"
            )
    else:
        frame = frame.with_columns(chunk=pl.lit(0, dtype=pl.Int32))
    return frame.drop("chunks").with_row_index("position")


def place_qrels_on_chunks(qrels: pl.DataFrame, documents: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The highest relevance of each pair, on the chunks that contain an answer if there are any, else on all chunks.

    Returns (query_index, document_index, chunk, relevance), and the number of positives with several chunks of which
    none contains an answer.
    """
    best = qrels.group_by("query_index", "document_index").agg(pl.col("relevance").max())
    if "chunk" not in qrels.columns:
        return best.with_columns(chunk=pl.lit(0, dtype=pl.Int32)), 0
    found = qrels.filter(pl.col("chunk") >= 0).select("query_index", "document_index", "chunk").unique()
    pair = ["query_index", "document_index"]
    located = best.join(found, on=pair)
    whole = best.join(found, on=pair, how="anti").join(
        documents.select("document_index", "chunks"), on="document_index"
    )
    n_unplaced = len(whole.filter((pl.col("relevance") > 0) & (pl.col("chunks") > 1)))
    on_all_chunks = whole.with_columns(chunk=pl.int_ranges(0, "chunks", dtype=pl.Int32)).explode("chunk")
    return pl.concat([located, on_all_chunks.select(located.columns)]), n_unplaced
