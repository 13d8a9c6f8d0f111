"""Exact search, 8,000 x 100,000 x 384, k = 100: `exact_search` against the three ways that others search a flat index.

mine_hard_negatives (sentence-transformers 6.2, use_faiss): IndexFlatIP, all documents added, 16,384 queries a call.
hn_mine (FlagEmbedding 1.4, scripts/hn_mine.py, which the package leaves out): the same index, 64 queries a call, ids
and scores as Python lists. faiss.knn: all queries and documents in one call, no index. The vectors are random and of
length 1, in memory before the clock starts. The last goal says how near counted FLOPs come to what the machine can do.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.clock import Clock, rated
from tests.benchmarks.encode import matrix_rate
from tests.benchmarks.work import Goal, Result, Sizes, Work

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Search = Callable[[Floats, Floats, int], npt.ArrayLike]

ROUNDING = 1e-6
"""Scores of two documents of a query that are nearer than this may change places between sides."""
BLOCK = 32_768
"""Documents at once, as search has it by default."""


def prepare(folder: Path, sizes: Sizes) -> Result:
    """queries.npy and documents.npy: random unit vectors, float32."""
    import numpy as np

    random = np.random.default_rng(0)
    for name in ("queries", "documents"):
        shape = (sizes[name], sizes["dimension"])
        vectors = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK]
            random.standard_normal(dtype=np.float32, out=part)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
    return {"flops": 2 * sizes["queries"] * sizes["documents"] * sizes["dimension"]}


def measured(name: str, search: "Callable[[], Search]") -> Callable[[Path, Sizes], Result]:
    """A side: `search` imports what it needs and gives the function to be timed, which gives ids [queries, k]."""

    def side(folder: Path, sizes: Sizes) -> Result:
        import numpy as np

        queries, documents = (np.load(folder / f"{what}.npy") for what in ("queries", "documents"))
        run = search()
        clock = Clock()
        ids = run(queries, documents, sizes["k"])
        took = clock.result()
        np.save(folder / f"{name}.ids.npy", np.asarray(ids))
        return rated(took, 2 * len(queries) * documents.size)

    return side


def exact(device: str) -> "Search":
    """`exact_search`, swept on a device, in the number format that search takes there."""
    import faiss  # noqa: F401
    import torch  # noqa: F401

    from stages.core.device import should_use_bfloat16
    from stages.retrieval.exact.search import exact_search

    dtype = "bfloat16" if should_use_bfloat16(device, "auto") else "float32"

    def run(queries: "Floats", documents: "Floats", k: int) -> "npt.ArrayLike":
        blocks = [documents[start : start + BLOCK] for start in range(0, len(documents), BLOCK)]
        return exact_search(queries, blocks, k, device=device, dtype=dtype)[0]

    return run


def _mine_hard_negatives() -> "Search":
    import faiss
    import numpy as np
    import torch

    def run(queries: "Floats", documents: "Floats", k: int) -> "npt.ArrayLike":
        index = faiss.IndexFlatIP(documents.shape[1])
        index.add(documents)
        found = [index.search(queries[start : start + 16_384], k=k) for start in range(0, len(queries), 16_384)]
        torch.from_numpy(np.concatenate([scores for scores, _ in found]))
        best: npt.ArrayLike = torch.from_numpy(np.concatenate([ids for _, ids in found])).numpy()
        return best

    return run


def _hn_mine() -> "Search":
    import faiss

    def run(queries: "Floats", documents: "Floats", k: int) -> "npt.ArrayLike":
        index = faiss.IndexFlatIP(documents.shape[1])
        index.add(documents)
        all_scores, all_ids = [], []
        for start in range(0, len(queries), 64):
            scores, ids = index.search(queries[start : start + 64], k=k)
            all_scores.extend(scores.tolist())
            all_ids.extend(ids.tolist())
        return all_ids

    return run


def _knn() -> "Search":
    import faiss

    def run(queries: "Floats", documents: "Floats", k: int) -> "npt.ArrayLike":
        best: npt.ArrayLike = faiss.knn(queries, documents, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
        return best

    return run


ours = measured("ours", partial(exact, "cpu"))


def check(folder: Path, sizes: Sizes) -> Result:
    """Every side found the same documents in the same places, but for scores nearer than rounding."""
    import numpy as np

    queries, documents = (np.load(folder / f"{what}.npy").astype(np.float64) for what in ("queries", "documents"))
    ours = np.load(folder / "ours.ids.npy")
    moved = {}
    for path in sorted(folder.glob("*.ids.npy")):
        theirs = np.load(path)
        assert theirs.shape == ours.shape, f"{path.stem}: {theirs.shape} for {ours.shape}"
        rows, places = np.nonzero(ours != theirs)
        gap = np.einsum("nd,nd->n", queries[rows], documents[ours[rows, places]] - documents[theirs[rows, places]])
        assert np.abs(gap).max(initial=0) < ROUNDING, f"{path.stem} found other documents: {np.abs(gap).max()}"
        moved[path.name.removesuffix(".ids.npy")] = len(rows)
    return {"pairs": ours.size, "in_another_place_by_rounding": moved}


PEERS = {"mine_hard_negatives": _mine_hard_negatives, "hn_mine": _hn_mine, "faiss.knn": _knn}
GOALS = {"mine_hard_negatives": 1.8, "hn_mine": 12.0, "faiss.knn": 1.5}

WORK = Work(
    about="exact search of random unit vectors",
    sizes={"queries": 8_000, "documents": 100_000, "dimension": 384, "k": 100},
    scaled=frozenset({"queries", "documents"}),
    prepare=prepare,
    sides={"ours": ours, "matrix rate": matrix_rate} | {name: measured(name, find) for name, find in PEERS.items()},
    goals=(
        *(Goal(name, over=name, under="ours", at_least=goal) for name, goal in GOALS.items()),
        Goal("matrix rate", over="ours", under="matrix rate", figure="gflops", at_least=0.6),
    ),
    check=check,
)
