"""A small collection on disk and a fake vector store, for the tests of the mask and sample steps."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.core.context import StageContext
from stages.pairs.near_duplicates import find_near_duplicates
from tests.fakes import RecordedProgress


def tools(folder: Path) -> StageContext:
    (folder / "scratch").mkdir(exist_ok=True)
    return StageContext(RecordedProgress(), folder / "scratch", folder, folder, scores=folder / "scores")


def table(schema: Any, *rows: tuple[Any, ...]) -> pl.DataFrame:
    """Rows in the order of the schema's columns, of which the last may be left out."""
    width = len(rows[0]) if rows else len(schema.names)
    frame = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    return pl.DataFrame(rows, schema=dict(list(frame.schema.items())[:width]), orient="row")


def write(folder: Path, **tables: pl.DataFrame) -> dict[str, Path]:
    """Write each table under its schema, and the near duplicates of the corpus; returns the paths by name."""
    if "corpus" in tables and "near_duplicates" not in tables:
        documents = tables["corpus"].select("doc_id", schemas.document_text(tables["corpus"].columns))
        tables["near_duplicates"] = find_near_duplicates(lambda: [documents])
    for name, frame in tables.items():
        schemas.write_table(frame, schemas.TABLES[name], folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in tables}


def stand_in(monkeypatch: pytest.MonkeyPatch, vectors: dict[str, list[float]]) -> None:
    """Let `stages.embedding.lookup.VectorLookup` give these vectors, by a query's text or a document's id."""

    class VectorLookup:
        def __init__(self, inputs: dict[str, Path], root: Path) -> None:
            self._queries = pl.read_parquet(inputs["queries"])["query"]
            self._documents = pl.read_parquet(inputs["corpus"])["doc_id"]

        def read_queries(self, rows: np.ndarray) -> np.ndarray:
            return np.array([vectors[self._queries[row]] for row in rows.tolist()], np.float32)

        def read_documents(self, rows: np.ndarray) -> np.ndarray:
            return np.array([vectors[self._documents[row]] for row in rows.tolist()], np.float32)

    module = types.ModuleType("stages.embedding.lookup")
    module.VectorLookup = VectorLookup  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stages.embedding.lookup", module)
