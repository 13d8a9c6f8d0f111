"""BM25 by `stages.retrieval.bm25` and by bm25s, from the same words: time, memory, and whether the results are equal.

Each turn of a side runs in a process of its own. "search": the 200 best documents of every query. "pairs": the scores
of 200 documents of every query, which bm25s takes from its scores of all documents. `--queries` takes the first ones.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.clock import Clock

TOP_K = 200


def read(folder: Path, n_queries: int) -> tuple[list[str], Callable[[], Iterator[str]]]:
    """The queries, and a function that reads the documents' texts, in batches."""
    import polars as pl
    import pyarrow.parquet as pq

    from stages.core.schemas import document_text

    def read_documents() -> Iterator[str]:
        with pq.ParquetFile(folder / "corpus.parquet") as file:
            for batch in file.iter_batches(8_192):
                frame = pl.DataFrame(pl.from_arrow(batch))
                yield from frame.select(document_text(frame.columns))["text"].to_list()

    return pl.read_parquet(folder / "queries.parquet")["query"].head(n_queries).to_list(), read_documents


def search_ours(folder: Path, n_queries: int) -> Any:
    import numpy as np

    from stages.retrieval.bm25 import Bm25Search

    queries, documents = read(folder, n_queries)
    results = Bm25Search(queries, documents()).search(np.arange(len(queries)), TOP_K)
    return results.query_index, results.document_index, results.score


def index_by_bm25s(folder: Path, n_queries: int) -> tuple[Any, list[list[str]]]:
    """bm25s with the words of ours, as numbers: one Python object for each distinct word and no more."""
    import bm25s
    from bm25s.tokenization import Tokenized

    from stages.retrieval.bm25 import tokenise

    queries, documents = read(folder, n_queries)
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in tokenise(text)] for text in documents()]
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    index.index(Tokenized(ids, vocabulary), show_progress=False)
    return index, [tokenise(text) for text in queries]


def search_by_bm25s(folder: Path, n_queries: int) -> Any:
    import numpy as np

    index, queries = index_by_bm25s(folder, n_queries)
    k = min(TOP_K, index.scores["num_docs"])
    documents, scores = index.retrieve(queries, k=k, show_progress=False, return_as="tuple")
    found = scores > 0
    return np.nonzero(found)[0], documents[found], scores[found]


def sampled_pairs(n_queries: int, n_documents: int) -> tuple[Any, Any]:
    import numpy as np

    k = min(TOP_K, n_documents)
    rows = np.random.default_rng(0).integers(0, n_documents, n_queries * k)
    return np.repeat(np.arange(n_queries), k), rows


def pairs_ours(folder: Path, n_queries: int) -> Any:
    from stages.retrieval.bm25 import Bm25

    queries, documents = read(folder, n_queries)
    index = Bm25(queries, documents())
    query_index, document_index = sampled_pairs(len(queries), index._weights.shape[0])
    return query_index, document_index, index.score_pairs(query_index, document_index)


def pairs_by_bm25s(folder: Path, n_queries: int) -> Any:
    import numpy as np

    index, queries = index_by_bm25s(folder, n_queries)
    query_index, document_index = sampled_pairs(len(queries), index.scores["num_docs"])
    scores = np.empty(len(query_index), np.float32)
    for query, words in enumerate(queries):
        part = slice(query * len(query_index) // len(queries), (query + 1) * len(query_index) // len(queries))
        known = [word for word in words if word in index.vocab_dict]
        scores[part] = index.get_scores(known)[document_index[part]] if known else 0
    return query_index, document_index, scores


SIDES = {
    "search": {"ours": search_ours, "bm25s": search_by_bm25s},
    "pairs": {"ours": pairs_ours, "bm25s": pairs_by_bm25s},
}


def run(work: str, side: str, folder: Path, n_queries: int) -> tuple[dict[str, float], Any]:
    """What a turn took, and its rows (query, document, score)."""
    import bm25s  # noqa: F401
    import polars  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.sparse  # noqa: F401

    before, clock = peak_mb(), Clock()
    rows = SIDES[work][side](folder, n_queries)
    return {**clock.result(), "added_mb": peak_mb() - before}, rows


def peak_mb() -> float:
    """The greatest resident memory of this process. Not by getrusage, which begins with that of the parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def compare(work: str, folder: Path, turns: int, n_queries: int) -> dict[str, Any]:
    """The turns of both sides, the ratios bm25s / ours of their medians, and how their results differ."""
    import numpy as np

    turns_by_side: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES[work]}
    rows: dict[str, Any] = {}
    for _ in range(turns):
        for side, found in turns_by_side.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                took, rows[side] = pool.apply(run, (work, side, folder, n_queries))
            found.append(took)
    medians = {
        side: {name: float(np.median([turn[name] for turn in found])) for name in found[0]}
        for side, found in turns_by_side.items()
    }
    ratios = {name: round(medians["bm25s"][name] / medians["ours"][name], 3) for name in medians["ours"]}
    pairs = {
        side: {(q, d): s for q, d, s in zip(*map(np.ndarray.tolist, found), strict=True)}
        for side, found in rows.items()
    }
    shared = pairs["ours"].keys() & pairs["bm25s"].keys()
    return {
        "medians": medians,
        "bm25s / ours": ratios,
        "rows": {side: len(found) for side, found in pairs.items()},
        "rows of both": len(shared),
        "greatest difference of a score": max((abs(pairs["ours"][p] - pairs["bm25s"][p]) for p in shared), default=0.0),
        "same documents in the same order": all(
            np.array_equal(a, b) for a, b in zip(rows["ours"][:2], rows["bm25s"][:2], strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="folders with queries.parquet and corpus.parquet")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--queries", type=int, default=100_000, help="at most so many")
    options = parser.parse_args()
    for folder in options.folder:
        for work in SIDES:
            print(
                folder.name,
                work,
                json.dumps(compare(work, folder, options.turns, options.queries), indent=1),
                flush=True,
            )


if __name__ == "__main__":
    main()
