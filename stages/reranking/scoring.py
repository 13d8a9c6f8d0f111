"""Scores of fixed (query, document) pairs, each pair scored once a model: BM25's and cross-encoders'."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.schemas import Progress
from stages.reranking.cross_encoder import Dtype, Pair
from stages.retrieval.bm25 import Bm25


def pair_texts(pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame) -> list[Pair]:
    """The texts of `pairs` (query_id, doc_id), in their order."""
    query, document = _places(pairs, queries, corpus)
    asked, texts = queries["query"], corpus["text"]
    return list(zip(asked.gather(query).to_list(), texts.gather(document).to_list(), strict=True))


def lexical_scores(pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame) -> NDArray[np.float32]:
    """BM25 of `pairs` (query_id, doc_id), with the statistics of the whole corpus."""
    query, document = _places(pairs, queries, corpus)
    return Bm25(queries["query"].to_list(), corpus["text"].to_list()).scores(query, document)


def neural_scores(
    texts: Sequence[Pair], folders: Iterable[Path], *, device: str, dtype: Dtype, seed: int, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """The scores of `texts` by the cross-encoder in each of `folders`, one model in memory at a time.

    The first model's limit of tokens holds for all, so that all read the same part of a text. An encoder without a
    ranking head gets a random one, drawn from `seed`.
    """
    from stages.reranking.cross_encoder import load_reranker, score_pairs

    folders = list(folders)
    total = len(folders) * len(texts)
    max_length = None
    for place, folder in enumerate(folders):
        if not texts:
            yield np.zeros(0, dtype=np.float32)
            continue
        before = place * len(texts)

        def advance(done: int, before: int = before) -> None:
            progress.advance(before + done, total, "pairs")

        model = load_reranker(folder, device, max_length, seed=seed)
        max_length = model.max_seq_length
        yield score_pairs(model, texts, dtype, advance)


def _places(
    pairs: pl.DataFrame, queries: pl.DataFrame, corpus: pl.DataFrame
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each pair's query in `queries`, and of its document in `corpus`."""
    found = pairs
    for frame, key, place in ((queries, "query_id", "query"), (corpus, "doc_id", "document")):
        rows = frame.select(key).with_row_index(place).with_columns(pl.col(place).cast(pl.Int64))
        found = found.join(rows, on=key, how="left", maintain_order="left")
    return found["query"].to_numpy(), found["document"].to_numpy()
