"""A fixed piece of work like that of the stages that run no model: its time says how fast a machine is at theirs."""

import io
import statistics
import time

import numpy as np
import polars as pl

from stages.retrieval.bm25 import tokenise

_QUERIES, _DEPTH, _DOCUMENTS, _DIMENSION = 300, 200, 1_000, 384
_WORDS = "how long does the standard delivery of an order of two items take in the north "


def taken(times: int = 3) -> float:
    """Seconds for the work, the median of so many: tables joined, sorted and written, small products, texts cut."""
    found = []
    for _ in range(times):
        started = time.monotonic()
        work()
        found.append(time.monotonic() - started)
    return statistics.median(found)


def work() -> int:
    """60,000 candidates of 300 queries, handled much as evidence, mask and compose do; returns bytes written."""
    generator = np.random.default_rng(0)
    documents = pl.DataFrame({"doc_id": [f"document {n:06}" for n in range(_DOCUMENTS)]}).with_row_index("place")
    rows = pl.DataFrame(
        {
            "query_id": [f"query {n:06}" for n in range(_QUERIES) for _ in range(_DEPTH)],
            "doc_id": documents["doc_id"].gather(generator.integers(0, _DOCUMENTS, _QUERIES * _DEPTH)),
            "score": generator.random(_QUERIES * _DEPTH, np.float32),
        }
    )
    rows = rows.join(documents, on="doc_id", how="left", maintain_order="left").sort("query_id", "score", "doc_id")
    vectors = generator.standard_normal((_DOCUMENTS, _DIMENSION), np.float32)
    for start in range(0, rows.height, _DEPTH):
        here = vectors[rows["place"][start : start + _DEPTH].to_numpy()]
        np.sort(here @ here[:10].T, axis=0)
    for number in range(1_000):
        tokenise(f"{number} {_WORDS * 4}")
    buffer = io.BytesIO()
    rows.group_by("query_id", maintain_order=True).head(50).write_parquet(buffer)
    rows.write_parquet(buffer)
    return buffer.tell()
