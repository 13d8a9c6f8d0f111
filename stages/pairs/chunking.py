"""Long documents cut into windows of words, and which of the windows hold a known answer."""

import re
from collections.abc import Sequence

import polars as pl

from stages.core.errors import InputError
from stages.core.text import casefold_words
from stages.pairs.cells import CJK_RANGES

_WORD = re.compile(f"[{CJK_RANGES}]|[^\\s{CJK_RANGES}]+")


def chunk_text(text: str, chunk_words: int, chunk_overlap: int) -> list[str]:
    """Windows of `chunk_words` words, each starting `words - overlap` after the one before; a short text is one window.

    A Chinese or Japanese character counts as a word. The last window ends with the text; none lies inside another.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if len(spans) <= chunk_words:
        return [text]
    starts = range(0, len(spans) - chunk_overlap, chunk_words - chunk_overlap)
    return [text[spans[start][0] : spans[min(start + chunk_words, len(spans)) - 1][1]] for start in starts]


def chunk_documents(documents: pl.DataFrame, chunk_words: int, chunk_overlap: int) -> pl.DataFrame:
    """Documents (`text`) as their windows, numbered in `chunk`; as they are, numbered 0, where `chunk_words` is 0."""
    if not chunk_words:
        return documents.with_columns(chunk=pl.lit(0, dtype=pl.Int32))
    chunks = [chunk_text(text, chunk_words, chunk_overlap) for text in documents["text"]]
    numbers = [list(range(len(parts))) for parts in chunks]
    return documents.with_columns(
        text=pl.Series(chunks, dtype=pl.List(pl.String)), chunk=pl.Series(numbers, dtype=pl.List(pl.Int32))
    ).explode("text", "chunk")


def find_answer_chunks(chunks: Sequence[str], answers: Sequence[str]) -> list[int]:
    """The indices of the chunks that hold one of the answers, case and punctuation aside; whole words where there are.

    >>> holding(["It began in 1973.", "Oil rose."], ["in 1973"])
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
    """The corpus' rows in order: document, d, chunk, position, doc_id. A document of one chunk keeps its id."""
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
    """One judgement a pair, the highest, on chunks: on those that hold the answer where one does, else on all.

    Returns (question, document, chunk, relevance) and how many positives of several chunks no answer placed.
    """
    best = qrels.group_by("question", "document").agg(pl.col("relevance").max())
    if "chunk" not in qrels.columns:
        return best.with_columns(chunk=pl.lit(0, dtype=pl.Int32)), 0
    found = qrels.filter(pl.col("chunk") >= 0).select("question", "document", "chunk").unique()
    pair = ["question", "document"]
    located = best.join(found, on=pair)
    whole = best.join(found, on=pair, how="anti").join(documents.select("document", "chunks"), on="document")
    n_unplaced = len(whole.filter((pl.col("relevance") > 0) & (pl.col("chunks") > 1)))
    on_all_chunks = whole.with_columns(chunk=pl.int_ranges(0, "chunks", dtype=pl.Int32)).explode("chunk")
    return pl.concat([located, on_all_chunks.select(located.columns)]), n_unplaced
