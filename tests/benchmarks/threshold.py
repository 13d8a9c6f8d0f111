"""A new threshold on stored candidates, 50,000 queries x 200: mask and compose alone against mining again.

Mining again is what a script does that kept no candidates: search, and all that follows from it, with prep's own
stages. The stored candidates are those that the last such run left; vectors are given to both.
"""

from pathlib import Path

from tests.benchmarks import collection
from tests.benchmarks.clock import Clock
from tests.benchmarks.mine import SETTINGS, STAGES
from tests.benchmarks.work import Goal, Result, Sizes, Work

NEW = {**SETTINGS, "threshold": 0.9}


def again(folder: Path, sizes: Sizes) -> Result:
    """Everything from search on; what it leaves is what `ours` finds stored."""
    collection.load(STAGES)
    clock = Clock()
    stages = collection.mine(STAGES, SETTINGS, folder, folder / "stored")
    took = clock.result()
    for name in STAGES:
        if not (folder / name).exists():
            (folder / name).symlink_to(folder / "stored" / name)
    return {**took, "stages": stages}


def ours(folder: Path, sizes: Sizes) -> Result:
    """The mask with another threshold, and compose."""
    collection.load(("mask", "sample"))
    clock = Clock()
    stages = collection.mine(("mask", "sample"), NEW, folder, folder / "ours")
    return {**clock.result(), "stages": stages}


def check(folder: Path, sizes: Sizes) -> Result:
    """The new threshold on stored candidates writes what mining with it writes, byte for byte."""
    collection.mine(STAGES, NEW, folder, folder / "anew")
    ours, anew = ((folder / name / "sample" / "mined.jsonl").read_bytes() for name in ("ours", "anew"))
    assert ours == anew, "a new threshold on stored candidates gave another file than mining again with it"
    return {"same_bytes": len(ours)}


WORK = Work(
    about="a new threshold on stored candidates against mining again",
    sizes={"queries": 50_000, "documents": 1_000_000, "dimension": 384},
    scaled=frozenset({"queries", "documents"}),
    prepare=collection.write,
    sides={"mining again": again, "ours": ours},
    goals=(Goal("mining again", over="mining again", under="ours", at_least=100),),
    check=check,
)
