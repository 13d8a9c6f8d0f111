"""Scores of fixed (query, document) pairs by BM25 and by cross-encoders."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.context import Progress
from stages.reranking.cross_encoder import Dtype, TextPair
from stages.retrieval.bm25 import Bm25


def gather_pair_texts(pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame) -> list[TextPair]:
    """The texts of `pairs` (query_id, doc_id), in their order."""
    query_rows, document_rows = _find_pair_rows(pairs, queries, corpus)
    query_texts, document_texts = queries["query"], corpus["text"]
    return list(
        zip(query_texts.gather(query_rows).to_list(), document_texts.gather(document_rows).to_list(), strict=True)
    )


def score_with_bm25(pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame) -> NDArray[np.float32]:
    """BM25 of `pairs` (query_id, doc_id), with the statistics of the whole corpus."""
    query_rows, document_rows = _find_pair_rows(pairs, queries, corpus)
    return Bm25(queries["query"].to_list(), corpus["text"].to_list()).score_pairs(query_rows, document_rows)


def score_with_cross_encoders(
    text_pairs: Sequence[TextPair], folders: Iterable[Path], *, device: str, dtype: Dtype, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """The scores of `text_pairs` by the cross-encoder in each of `folders`, with one model in memory at a time.

    The token limit of the first model applies to all, so that all read the same part of a text.
    """
    from stages.reranking.cross_encoder import load_reranker, score_pairs

    folders = list(folders)
    total = len(folders) * len(text_pairs)
    max_length = None
    for model_index, folder in enumerate(folders):
        if not text_pairs:
            yield np.zeros(0, dtype=np.float32)
            continue
        before = model_index * len(text_pairs)

        def advance(done: int, before: int = before) -> None:
            progress.advance(before + done, total, "pairs")

        model = load_reranker(folder, device, max_length)
        max_length = model.max_seq_length
        yield score_pairs(model, text_pairs, dtype, advance)


def _find_pair_rows(
    pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each pair's query in `queries`, and of its document in `corpus`."""
    joined = pairs
    for frame, key, row_column in ((queries, "query_id", "query"), (corpus, "doc_id", "document")):
        rows = frame.select(key).with_row_index(row_column).with_columns(pl.col(row_column).cast(pl.Int64))
        joined = joined.join(rows, on=key, how="left", maintain_order="left")
    return joined["query"].to_numpy(), joined["document"].to_numpy()
