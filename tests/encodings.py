"""The files that encode writes, made without a model, for tests and benchmarks that store their own vectors."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.hashing import hash_texts
from stages.embedding.encoder_fit import EncoderFit, TextMeasures
from stages.embedding.lookup import read_text_blocks
from stages.embedding.vector_store import VectorStore


def make_encoder_fit(n_queries: int = 715, n_documents: int = 296, **given: Any) -> EncoderFit:
    """What encode finds of an encoder without a tokenizer."""
    of_queries, of_documents = (TextMeasures(number, None, 0.0) for number in (n_queries, n_documents))
    return replace(EncoderFit("ok", (), of_queries, of_documents, None, n_documents), **given)


def write_encodings(folder: Path, models: Mapping[str, str]) -> dict[str, Path]:
    """Write encoder.json and text_hashes.npy for queries.parquet and corpus.parquet in `folder`; returns their paths.

    `models`: the name of each encoder's model by the name of its vector store under folder/vectors.
    """
    query_texts, document_texts = (
        [text for block in read_text_blocks(folder / table, role) for text in block]
        for table, role in (("queries.parquet", "query"), ("corpus.parquet", "document"))
    )
    counts = {"queries": len(query_texts), "documents": len(document_texts)}
    first, *more = [
        {"encoder_key": store, "model": model, "dimension": VectorStore(folder / "vectors" / store).dimension, **counts}
        for store, model in models.items()
    ]
    first["encoder_fit"] = make_encoder_fit(len(query_texts), len(document_texts)).to_dict()
    (folder / "encoder.json").write_text(json.dumps(first | ({"extra_encoders": more} if more else {})))
    np.save(folder / "text_hashes.npy", np.stack([hash_texts(query_texts + document_texts)] * len(models)))
    return {"encoder": folder / "encoder.json", "text_hashes": folder / "text_hashes.npy"}
