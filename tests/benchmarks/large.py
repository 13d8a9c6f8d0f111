"""A large collection on a small machine: 100,000 queries x 2,000,000 x 384 from stored vectors to JSONL, within 4 GB.

All of [mine] stays as it is when nothing is set: exact search of 200 candidates, the estimate, the learned mask. It has
no peer. The peak is all that the process holds in memory at once, the mapped files of the vector store among it.
"""

from pathlib import Path

from tests.benchmarks import collection
from tests.benchmarks.clock import Clock
from tests.benchmarks.mine import STAGES
from tests.benchmarks.work import Goal, Result, Sizes, Work


def ours(folder: Path, sizes: Sizes) -> Result:
    """The stages from search to compose."""
    collection.load(STAGES)
    clock = Clock()
    stages = collection.mine(STAGES, {}, folder, folder / "ours")
    return {**clock.result(), "stages": stages}


def check(folder: Path, sizes: Sizes) -> Result:
    """Every query was searched to the full depth; how many have all their negatives."""
    import json

    import pyarrow.parquet as pq

    with (folder / "ours" / "sample" / "mined.jsonl").open() as file:
        filled = [len(json.loads(line)["neg"]) for line in file]
    candidates = pq.read_metadata(folder / "ours" / "search" / "candidates.parquet").num_rows
    assert candidates == 200 * sizes["queries"]
    estimator = json.loads((folder / "ours" / "features" / "estimator.json").read_text())
    return {
        "lines": len(filled),
        "negatives": sum(filled),
        "source": estimator["source"],
        "unreliable_reason": estimator["unreliable_reason"],
    }


WORK = Work(
    about="search, evidence, mask and JSONL of 2 M documents, vectors given",
    sizes={"queries": 100_000, "documents": 2_000_000, "dimension": 384},
    scaled=frozenset({"queries", "documents"}),
    prepare=collection.write,
    sides={"ours": ours},
    goals=(Goal("4 GB", over="ours", under=None, figure="peak_gb", at_most=4),),
    check=check,
)
