"""A small collection on disk, and stand-ins for the vector store and the tools, for the tests of mask and compose."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.core.context import StageContext
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
    """Write each table under its name's contract; the paths by name."""
    for name, frame in tables.items():
        schemas.write_table(frame, schemas.TABLES[name], folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in tables}


def stand_in(monkeypatch: pytest.MonkeyPatch, vectors: dict[str, list[float]]) -> None:
    """Let `stages.embedding.lookup.VectorLookup` give these document vectors."""

    class VectorLookup:
        def __init__(self, encoding: Path, root: Path) -> None:
            self._placed: list[np.ndarray] = []

        def hash_documents(self, frame: pl.DataFrame) -> np.ndarray:
            return np.array([list(doc_id.ljust(16).encode()) for doc_id in frame["doc_id"]], dtype=np.uint8)

        def hash_queries(self, frame: pl.DataFrame) -> np.ndarray:
            return np.array([list(text[:16].ljust(16).encode()) for text in frame["query"]], dtype=np.uint8)

        def read(self, hashes: np.ndarray) -> np.ndarray:
            return np.array([vectors[bytes(row).decode().strip()] for row in hashes], dtype=np.float32)

        def locate(self, hashes: np.ndarray) -> np.ndarray:
            self._placed.extend(hashes)
            return np.arange(len(self._placed) - len(hashes), len(self._placed))

        def read_at(self, places: np.ndarray) -> np.ndarray:
            return self.read(np.array([self._placed[place] for place in places], np.uint8).reshape(-1, 16))

    module = types.ModuleType("stages.embedding.lookup")
    module.VectorLookup = VectorLookup  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stages.embedding.lookup", module)
