"""What mining needs of the corpus: clusters of near duplicates, words, vectors. The corpus is read in batches."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.arrays import Floats, Ints
from stages.core.schemas import document_text
from stages.core.text import casefold_words

if TYPE_CHECKING:
    from stages.embedding.lookup import VectorLookup

DocumentVectoriser = Callable[[pl.DataFrame], Floats]
"""A function from a frame with a doc_id column to its document vectors [n, d], in the same order."""

_CORPUS_ROWS_PER_BATCH = 8192


def number_clusters(inputs: Mapping[str, Path]) -> pl.DataFrame:
    """document, doc_id and cluster of every document, in the order of the corpus: near duplicates share a cluster.

    `document` is the row in the corpus, and `cluster` that of the cluster's first document.
    """
    documents = schemas.read_table(inputs["corpus"], schemas.CORPUS, ["doc_id"]).with_row_index("document")
    clusters = schemas.read_table(inputs["near_duplicates"], schemas.NEAR_DUPLICATES)
    firsts = clusters.join(documents.select(cluster="doc_id", first="document"), on="cluster").select("doc_id", "first")
    joined = documents.join(firsts, on="doc_id", how="left", maintain_order="left")
    return joined.select("document", "doc_id", cluster=pl.coalesce("first", "document"))


def write_document_words(corpus: Path, path: Path) -> pa.Table:
    """doc_id and words: the `casefold_words` of every document, with a space on both sides.

    The table is written to `path` and memory-mapped, so the corpus need not fit into memory.
    """
    schema = pa.schema({"doc_id": pa.large_string(), "words": pa.large_string()})
    with pa.ipc.new_file(path, schema) as writer:
        for ids, texts in iter_document_texts(corpus):
            words = pa.array([f" {casefold_words(text)} " for text in texts], pa.large_string())
            writer.write_batch(pa.record_batch([pa.array(ids, pa.large_string()), words], schema=schema))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def make_document_vectoriser(corpus: Path, vectors: "VectorLookup") -> DocumentVectoriser:
    """A function that reads the vectors of documents. It raises `KeyError` for an unknown document."""
    ids = pl.read_parquet(corpus, columns=["doc_id"])["doc_id"]
    return lambda frame: vectors.read_documents(find_id_rows(frame["doc_id"], ids))


class DocumentVectors(NamedTuple):
    """The vectors of some documents, in memory."""

    doc_ids: pl.Series
    """[n]: sorted, each once."""
    vectors: Floats
    """[n, d]"""

    @classmethod
    def load(cls, doc_ids: pl.Series, vectorise: DocumentVectoriser) -> Self:
        """The vectors of the documents with these ids, in any order and with repetitions."""
        ids = doc_ids.unique().sort()
        return cls(ids, vectorise(ids.to_frame("doc_id")).astype(np.float32, copy=False))

    def find_rows(self, doc_ids: pl.Series) -> Ints:
        """The row of each of `doc_ids` [n]. Raises `KeyError` for an unknown id."""
        return find_id_rows(doc_ids, self.doc_ids)


def find_id_rows(wanted: pl.Series, sorted_ids: pl.Series) -> Ints:
    """The position of each of `wanted` [n] in `sorted_ids`, by binary search. Raises `KeyError` for an unknown id."""
    found = sorted_ids.search_sorted(wanted)
    unknown = (
        wanted
        if sorted_ids.is_empty()
        else wanted.filter(sorted_ids.gather(found.clip(upper_bound=len(sorted_ids) - 1)) != wanted)
    )
    if len(unknown):
        raise KeyError(f"{unknown[0]!r} is not in the table")
    return found.cast(pl.Int64).to_numpy()


def iter_document_texts(corpus: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The ids and the texts of a corpus file as models read them, in batches."""
    for frame in _iter_documents(corpus):
        yield frame["doc_id"].to_list(), frame["text"].to_list()


def _iter_documents(corpus: Path) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(corpus) as file:
        for batch in file.iter_batches(_CORPUS_ROWS_PER_BATCH, columns=["doc_id", "text", "title"]):
            frame = pl.DataFrame(pl.from_arrow(batch))
            yield frame.select("doc_id", document_text(frame.columns))
