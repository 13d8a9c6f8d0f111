"""Where an index pays: `python -m tests.benchmarks.approximate_search [--queries N] [--documents N] [--index STRING]`.

Clustered vectors of length 1 that, as texts' do, hardly vary along most dimensions: a mixture of Gaussians in 32
dimensions, turned into more, with a little noise in all. The search stage runs on them exactly, then by each index.
Prints a JSON line for each: the seconds that it took, and the processor's; how many times less of the processor's it
took than exact; what it says of itself; and the share of the exact candidates that it found, of all queries.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.core.context import NullProgress, StageContext
from stages.core.errors import InputError
from stages.core.hashing import hash_texts
from stages.core.schemas import CORPUS, QRELS, QUERIES, write_table
from stages.embedding.vector_store import VectorStore
from stages.retrieval.stage import Params, run
from tests.encodings import write_encodings

INDEXES = ("IVF1024,Flat", "IVF1024,PQ48", "IVF1024,PQ48,RFlat k_factor_rf=4")
_INNER = 32


class Mixture:
    """Vectors float32 [n, dimension] of length 1 around as many centres."""

    def __init__(self, centres: int, dimension: int) -> None:
        self._random = np.random.default_rng(0)
        self._centres = self._random.standard_normal((centres, _INNER), np.float32)
        self._turn = np.linalg.qr(self._random.standard_normal((dimension, _INNER)))[0].T.astype(np.float32)

    def vectors(self, count: int) -> npt.NDArray[np.float32]:
        """Some more."""
        inner = self._centres[self._random.integers(0, len(self._centres), count)]
        inner = inner + np.float32(0.5) * self._random.standard_normal(inner.shape, np.float32)
        found = inner @ self._turn
        found += np.float32(0.02) * self._random.standard_normal(found.shape, np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found


def write_inputs(folder: Path, given: argparse.Namespace) -> None:
    """Tables of queries and documents, and their vectors."""
    mixture, store = Mixture(given.centres, given.dimension), VectorStore(folder / "vectors/key")
    texts = {kind: [f"{kind} {i:08}" for i in range(getattr(given, kind))] for kind in ("queries", "documents")}
    for some in texts.values():
        for start in range(0, len(some), 65_536):
            part = some[start : start + 65_536]
            store.append(hash_texts(part), mixture.vectors(len(part)))
    queries, documents = texts["queries"], texts["documents"]
    frame = pl.DataFrame({"query_id": queries, "query": queries, "group": queries}).with_columns(split=pl.lit("train"))
    write_table(frame, QUERIES, folder / "queries.parquet")
    write_table(pl.DataFrame({"doc_id": documents, "text": documents}), CORPUS, folder / "corpus.parquet")
    pair = {"query_id": queries[:1], "doc_id": documents[:1], "relevance": [1]}
    write_table(pl.DataFrame(pair, schema_overrides={"relevance": pl.Int32}), QRELS, folder / "qrels.parquet")
    write_encodings(folder, {"key": "synthetic"})


def searched(folder: Path, params: Params) -> tuple[dict[str, Any], pl.DataFrame]:
    """One run of the stage from nothing: its seconds and what it says of its index, and the pairs that it found."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    shutil.rmtree(folder / "vectors/key/topk_cache", ignore_errors=True)
    inputs = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
    inputs |= {"encoder": folder / "encoder.json", "text_hashes": folder / "text_hashes.npy"}
    tools = StageContext(NullProgress(), folder / "scratch", folder / "vectors", folder / "logs")
    started, busy = time.perf_counter(), time.process_time()
    summary = run(params, inputs, out, tools)
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
    pairs = pl.read_parquet(out / "candidates.parquet", columns=["query_id", "doc_id"])
    return took | summary.get("faiss_indexes", {}).get("dense", {"index": "exact"}), pairs


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8_000)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--centres", type=int, default=2_000)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--index", nargs="*", default=list(INDEXES), help="each with its parameters after a space")
    parser.add_argument("--min-recall", type=float, default=0.95)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, given)
        exact, pairs = searched(folder, Params(top_k=given.depth))
        print(json.dumps(vars(given) | exact), flush=True)
        for spelled in given.index:
            index, _, parameters = spelled.partition(" ")
            params = Params(top_k=given.depth, faiss_index=index, faiss_params=parameters, min_recall=given.min_recall)
            try:
                told, found = searched(folder, params)
            except InputError as refused:
                print(json.dumps({"index": index, "refused": str(refused)}), flush=True)
                continue
            share = found.join(pairs, on=["query_id", "doc_id"], how="semi").height / pairs.height
            faster = {"faster_than_exact": exact["cpu_seconds"] / told["cpu_seconds"], "found_of_all": share}
            print(json.dumps(told | faster), flush=True)


if __name__ == "__main__":
    main()
