"""Search, mask, compose and JSONL, 50,000 x 1,000,000 x 384: the stages against mine_hard_negatives with FAISS.

Both read the same tables and have the same vectors: ours in the vector store, sentence-transformers from a model whose
encode gives them. Both look at 200 candidates a query, set aside what scores above 0.95 x the positive (relative_margin
0.05) and take the 7 best of the rest with their scores. What only ours could do (near-duplicates, estimate, thinning)
is off, so that both must choose the same negatives.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import collection
from tests.benchmarks.clock import Clock
from tests.benchmarks.work import Goal, Result, Sizes, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

NEGATIVES = 7
DEPTH = 200
STAGES = ("search", "features", "verify", "mask", "sample")
SETTINGS = {
    "depth": DEPTH,
    "mask": "perc",
    "threshold": 0.95,
    "negatives": NEGATIVES,
    "estimate": False,
    "duplicate_similarity": 2.0,
    "thin_similarity": 2.0,
}
SAME = 0.999
"""The least share of queries that must have the same negatives: scores nearer than rounding may change places."""


def ours(folder: Path, sizes: Sizes) -> Result:
    """The stages from search to compose."""
    collection.load(STAGES)
    clock = Clock()
    stages = collection.mine(STAGES, SETTINGS, folder, folder / "ours")
    return {**clock.result(), "stages": stages}


def theirs(folder: Path, sizes: Sizes) -> Result:
    """mine_hard_negatives with use_faiss, and its data set as JSON lines."""
    import polars as pl
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    clock = Clock()
    tables = {name: pl.read_parquet(folder / "pairs" / f"{name}.parquet") for name in ("queries", "corpus", "qrels")}
    pairs = tables["qrels"].join(tables["queries"], on="query_id").join(tables["corpus"], on="doc_id").sort("query_id")
    dataset = Dataset.from_dict({"query": pairs["query"].to_list(), "positive": pairs["text"].to_list()})
    mined = mine_hard_negatives(
        dataset,
        _Stored(folder),
        corpus=tables["corpus"]["text"].to_list(),
        range_max=DEPTH - 1,  # it adds the number of positives
        relative_margin=1 - SETTINGS["threshold"],  # type: ignore[operator]
        num_negatives=NEGATIVES,
        use_faiss=True,
        output_format="labeled-list",
        output_scores=True,
        verbose=False,
    )
    mined.to_json(folder / "theirs.jsonl")
    return clock.result()


class _Stored:
    """As much of a SentenceTransformer as mine_hard_negatives asks for, with vectors from a file."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.device = torch.device("cpu")
        self._folder = folder

    def encode_document(self, texts: list[str], **_: Any) -> Any:
        return self._read("documents", len(texts))

    def encode_query(self, texts: list[str], **_: Any) -> Any:
        return self._read("queries", len(texts))

    def get_embedding_dimension(self) -> int:
        import numpy as np

        return int(np.load(self._folder / "queries.npy", mmap_mode="r").shape[1])

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(a, b)

    def _read(self, name: str, rows: int) -> Any:
        import numpy as np

        vectors = np.load(self._folder / f"{name}.npy")
        assert len(vectors) == rows
        return vectors


def check(folder: Path, sizes: Sizes) -> Result:
    """Both wrote the same negatives for (nearly) every query."""
    import json

    def read(path: Path) -> "Iterator[dict[str, Any]]":
        with path.open() as file:
            yield from map(json.loads, file)

    own = {line["query"]: line["neg"] for line in read(folder / "ours" / "sample" / "mined.jsonl")}
    others = {line["query"]: line["positive"][1:] for line in read(folder / "theirs.jsonl")}
    same = sum(own.get(query) == negatives for query, negatives in others.items())
    assert min(same, len(others)) >= SAME * max(len(own), 1), f"{same} of {len(own)} and {len(others)} queries agree"
    filled = sum(map(len, own.values())) / (NEGATIVES * sizes["queries"])
    return {"queries": len(own), "theirs": len(others), "same": same, "fill": round(filled, 4)}


WORK = Work(
    about="search, mask (perc), compose and JSONL, vectors given",
    sizes={"queries": 50_000, "documents": 1_000_000, "dimension": 384},
    scaled=frozenset({"queries", "documents"}),
    prepare=collection.write,
    sides={"ours": ours, "sentence-transformers": theirs},
    goals=(
        Goal("sentence-transformers", over="sentence-transformers", under="ours", at_least=1.8),
        Goal("its peak memory", over="ours", under="sentence-transformers", figure="peak_gb", at_most=0.25),
        Goal("3 GB", over="ours", under=None, figure="peak_gb", at_most=3),
    ),
    check=check,
)
