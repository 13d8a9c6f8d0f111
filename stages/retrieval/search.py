"""Search: the best `depth` documents of every query, exactly, in memory bounded by a block of documents."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.contracts import (
    CANDIDATES,
    CORPUS,
    JUDGED,
    QRELS,
    QUERIES,
    Summary,
    Tools,
    read_table,
    to_arrow,
    write_table,
)
from stages.errors import InputError
from stages.params import Params as Base
from stages.params import option
from stages.retrieval.encode import Vectors
from stages.retrieval.nearest import Ids, exact_top_k, pair_scores
from stages.retrieval.vectors import Floats, Hashes


class Params(Base):
    """How deep to look."""

    depth: int = option(200, "Candidates a query: its best documents, known positives included.", ge=1)
    block: int = option(
        32_768, "Documents held in memory at once. It changes memory and speed only.", unkeyed=True, ge=1
    )


VERSION = 1

_QUERIES = 16_384
"""Queries searched at once: enough for FAISS to multiply matrices (queries x dimension >= 128,000), 45 MB of heaps."""
_ROWS = 1_024
"""Queries written at once."""


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Search all queries in the whole corpus; write candidates.parquet and judged.parquet.

    candidates: by query_id and rank (from 1), best score first, ties by doc_id; all documents where there are fewer
    than `depth`. judged: every row of qrels with its score. Raises `InputError` where a vector is not finite.
    """
    vectors = Vectors(inputs["encoding"], tools.vectors)
    queries = read_table(inputs["queries"], QUERIES, ["query_id", "query"])
    query_hashes = vectors.query_hashes(queries)
    documents = _Documents(inputs["corpus"], vectors, params.block)
    total, rows = queries.height, 0
    depth = min(params.depth, len(documents.ids))
    with pq.ParquetWriter(out / "candidates.parquet", CANDIDATES, compression="zstd") as writer:
        for part in np.array_split(np.arange(total), -(-total // _QUERIES) or 1):
            found = vectors.read(query_hashes[part])
            _require_finite(found, queries["query_id"].gather(part), "query")
            ids, scores = exact_top_k(found, documents, depth)
            for start in range(0, len(part), _ROWS):
                some = slice(start, start + _ROWS)
                frame = _candidates(queries["query_id"].gather(part[some]), documents.ids, ids[some], scores[some])
                writer.write_table(to_arrow(frame, CANDIDATES))
                rows += frame.height
            tools.progress.advance(int(part[-1]) + 1 if len(part) else 0, total, "queries")
    qrels = read_table(inputs["qrels"], QRELS)
    judged = _judged(qrels, queries["query_id"], query_hashes, documents, vectors)
    write_table(judged, JUDGED, out / "judged.parquet")
    return {"queries": total, "documents": len(documents.ids), "candidates": rows, "judged": judged.height}


class _Documents:
    """The corpus as blocks of vectors; begins anew each time it is iterated. Holds ids and hashes, no texts."""

    def __init__(self, corpus: Path, vectors: Vectors, block: int) -> None:
        self._vectors, self._block = vectors, block
        self.ids = read_table(corpus, CORPUS, ["doc_id"])["doc_id"].rechunk()
        hashes = [np.empty((0, 16), np.uint8)]
        with pq.ParquetFile(corpus) as file:
            for batch in file.iter_batches(8_192, columns=["text", "title"]):
                hashes.append(vectors.document_hashes(pl.DataFrame(pl.from_arrow(batch))))
        self.hashes: Hashes = np.concatenate(hashes)

    def __iter__(self) -> Iterator[Floats]:
        for start in range(0, len(self.ids), self._block):
            part = slice(start, start + self._block)
            block = self._vectors.read(self.hashes[part])
            _require_finite(block, self.ids[part], "document")
            yield block


def _candidates(query_ids: pl.Series, doc_ids: pl.Series, ids: Ids, scores: Floats) -> pl.DataFrame:
    depth = ids.shape[1]
    return pl.DataFrame(
        {
            "query_id": query_ids.gather(np.repeat(np.arange(len(ids)), depth)),
            "doc_id": doc_ids.gather(ids.ravel()),
            "source": pl.repeat("dense", ids.size, eager=True),
            "rank": np.tile(np.arange(1, depth + 1, dtype=np.int32), len(ids)),
            "score": scores.ravel(),
        }
    )


def _judged(
    qrels: pl.DataFrame, query_ids: pl.Series, query_hashes: Hashes, documents: _Documents, vectors: Vectors
) -> pl.DataFrame:
    """qrels with the score of each row's pair, computed as the candidates' scores are."""
    query_row = _places(qrels["query_id"], query_ids)
    doc_row = _places(qrels["doc_id"], documents.ids)
    scores = np.empty(qrels.height, np.float32)
    for start in range(0, qrels.height, 8_192):
        part = slice(start, start + 8_192)
        q = vectors.read(query_hashes[query_row[part]])
        scores[part] = pair_scores(q, vectors.read(documents.hashes[doc_row[part]]))
    return qrels.with_columns(pl.Series("score", scores))


def _places(wanted: pl.Series, ids: pl.Series) -> Ids:
    """Where each of `wanted` stands in `ids`; `ValueError` names one that does not."""
    index = pl.DataFrame({"id": ids, "place": np.arange(len(ids))})
    found = pl.DataFrame({"id": wanted}).join(index, on="id", how="left", maintain_order="left")["place"]
    if found.null_count():
        raise ValueError(f"qrels names {wanted.filter(found.is_null())[0]!r}, which is not in its table")
    return found.to_numpy()


def _require_finite(vectors: Floats, ids: pl.Series, kind: str) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"the vector of {kind} {ids[int(np.argmax(bad))]!r} is not finite. "
            f'Encode with dtype = "float32", or look at the text of that {kind}.'
        )
