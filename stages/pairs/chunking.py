"""Long documents cut into windows of words, and which of the windows hold a known answer."""

import re
from collections.abc import Sequence

import polars as pl

from stages.core.errors import InputError
from stages.core.text import loose
from stages.pairs.cells import WIDE

_WORD = re.compile(f"[{WIDE}]|[^\\s{WIDE}]+")


def cut(text: str, words: int, overlap: int) -> list[str]:
    """Windows of `words` words, each starting `words - overlap` after the one before; a short text is one window.

    A Chinese or Japanese character counts as a word. The last window ends with the text; none lies inside another.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if len(spans) <= words:
        return [text]
    starts = range(0, len(spans) - overlap, words - overlap)
    return [text[spans[start][0] : spans[min(start + words, len(spans)) - 1][1]] for start in starts]


def cut_frame(frame: pl.DataFrame, words: int, overlap: int) -> pl.DataFrame:
    """Documents (`text`) as their windows, numbered in `chunk`; as they are, numbered 0, where `words` is 0."""
    if not words:
        return frame.with_columns(chunk=pl.lit(0, dtype=pl.Int32))
    pieces = [cut(text, words, overlap) for text in frame["text"]]
    numbers = [list(range(len(piece))) for piece in pieces]
    return frame.with_columns(
        text=pl.Series(pieces, dtype=pl.List(pl.String)), chunk=pl.Series(numbers, dtype=pl.List(pl.Int32))
    ).explode("text", "chunk")


def holding(chunks: Sequence[str], answers: Sequence[str]) -> list[int]:
    """The indices of the chunks that hold one of the answers, case and punctuation aside; whole words where there are.

    >>> holding(["It began in 1973.", "Oil rose."], ["in 1973"])
    [0]
    """
    wanted = [(text, bool(re.search(f"[{WIDE}]", text))) for text in map(loose, answers) if text]
    found = []
    for index, chunk in enumerate(chunks):
        text = f" {loose(chunk)} "
        if any((answer if wide else f" {answer} ") in text for answer, wide in wanted):
            found.append(index)
    return found


def corpus_rows(documents: pl.DataFrame, cut_up: bool) -> pl.DataFrame:
    """The corpus' rows in order: document, d, chunk, position, doc_id. A document of one chunk keeps its id."""
    frame = documents
    if cut_up:
        frame = frame.with_columns(chunk=pl.int_ranges(0, "chunks", dtype=pl.Int32)).explode("chunk")
        numbered = pl.when(pl.col("chunks") > 1).then(pl.format("{}#{}", "doc_id", "chunk")).otherwise("doc_id")
        frame = frame.with_columns(doc_id=numbered).sort("doc_id")
        if frame["doc_id"].n_unique() != len(frame):
            twice = frame.filter(pl.col("doc_id").is_duplicated())["doc_id"][0]
            raise InputError(f"the document id {twice!r} is also the id of a chunk of another document: rename one")
    else:
        frame = frame.with_columns(chunk=pl.lit(0, dtype=pl.Int32))
    return frame.drop("chunks").with_row_index("position")


def best_judgements(places: pl.DataFrame, documents: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One judgement a pair, the highest, on chunks: on those that hold the answer where one does, else on all.

    Returns (question, document, chunk, relevance) and how many positives of several chunks no answer placed.
    """
    best = places.group_by("question", "document").agg(pl.col("relevance").max())
    if "chunk" not in places.columns:
        return best.with_columns(chunk=pl.lit(0, dtype=pl.Int32)), 0
    found = places.filter(pl.col("chunk") >= 0).select("question", "document", "chunk").unique()
    pair = ["question", "document"]
    located = best.join(found, on=pair)
    whole = best.join(found, on=pair, how="anti").join(documents.select("document", "chunks"), on="document")
    unplaced = len(whole.filter((pl.col("relevance") > 0) & (pl.col("chunks") > 1)))
    spread = whole.with_columns(chunk=pl.int_ranges(0, "chunks", dtype=pl.Int32)).explode("chunk")
    return pl.concat([located, spread.select(located.columns)]), unplaced
