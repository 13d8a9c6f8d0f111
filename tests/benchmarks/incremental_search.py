"""What a search costs after a change: `python -m tests.benchmarks.incremental_search [--queries N] [--documents N]`.

Random vectors of length 1 (the worst case: neighbours of no structure). A share of documents and queries gets new
texts; the search stage runs from nothing, after the change, and from nothing on what is there then: the candidates
must be the same bytes. Prints one JSON line: seconds of each, their ratio, what was searched, and the process's peak
memory in MB.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.core.context import NullProgress, StageContext
from stages.core.hashing import hash_texts
from stages.core.schemas import CORPUS, QRELS, QUERIES, write_table
from stages.embedding.vector_store import VectorStore
from stages.retrieval.stage import Params, run
from tests.encodings import write_encodings


def texts(kind: str, count: int, changed: float) -> list[str]:
    """Texts of `count` rows, of which the share `changed`, spread evenly, are others than without it."""
    each = round(1 / changed) if changed else count + 1
    return [f"{kind} {i}{' changed' if i % each == each - 1 else ''}" for i in range(count)]


def write_inputs(folder: Path, given: argparse.Namespace, changed: float, random: np.random.Generator) -> None:
    """Tables, and vectors of those of their texts that have none yet."""
    queries, documents = texts("query", given.queries, changed), texts("document", given.documents, changed)
    store = VectorStore(folder / "vectors/key")
    for start in range(0, len(documents), 65_536):
        some = [*documents[start : start + 65_536], *(queries if not start else [])]
        hashes = hash_texts(some)
        lacking = hashes[~store.contains(hashes)]
        vectors = random.standard_normal((len(lacking), given.dimension), np.float32)
        store.append(lacking, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    ids = {"query_id": [f"q{i:07}" for i in range(len(queries))], "doc_id": [f"d{i:07}" for i in range(len(documents))]}
    frame = pl.DataFrame({"query_id": ids["query_id"], "query": queries})
    frame = frame.with_columns(split=pl.lit("train"), group=pl.col("query_id"))
    write_table(frame, QUERIES, folder / "queries.parquet")
    write_table(pl.DataFrame({"doc_id": ids["doc_id"], "text": documents}), CORPUS, folder / "corpus.parquet")
    judged = min(len(queries), len(documents))
    frame = pl.DataFrame({name: some[:judged] for name, some in ids.items()})
    write_table(frame.with_columns(relevance=pl.lit(1, pl.Int32)), QRELS, folder / "qrels.parquet")


def timed(folder: Path, depth: int, out: str) -> tuple[float, dict[str, Any]]:
    """Seconds of one run of the stage, and what it says of its lists."""
    (folder / out).mkdir(exist_ok=True)
    inputs = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
    tools = StageContext(NullProgress(), folder / "scratch", folder / "vectors", folder / "logs")
    inputs |= write_encodings(folder, {"key": "random"})
    started = time.perf_counter()
    summary = run(Params(top_k=depth), inputs, folder / out, tools)
    return time.perf_counter() - started, summary["topk_cache"]["dense"]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--changed", type=float, default=0.01)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, given, 0, random)
        first, _ = timed(folder, given.depth, "first")
        write_inputs(folder, given, given.changed, random)
        after, told = timed(folder, given.depth, "after")
        again, _ = timed(folder, given.depth, "after-again")
        shutil.rmtree(folder / "vectors/key/topk_cache")
        nothing, _ = timed(folder, given.depth, "nothing")
        same = (folder / "after/candidates.parquet").read_bytes() == (
            folder / "nothing/candidates.parquet"
        ).read_bytes()
    print(
        json.dumps(
            vars(given)
            | {"first": first, "from_nothing": nothing, "after_change": after, "nothing_changed": again}
            | {"ratio": after / nothing, "same_bytes": same, "lists": told}
            | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        )
    )


if __name__ == "__main__":
    main()
