"""Exact search on a GPU, 100,000 x 5,000,000 x 768, k = 100: `exact_search` by counted FLOPs against the matrix
rate."""

from functools import partial

from tests.benchmarks.encode import matrix_rate
from tests.benchmarks.search import exact, measured, prepare
from tests.benchmarks.work import Goal, Work

WORK = Work(
    about="exact search of random unit vectors on a GPU; vectors in the machine's memory before the clock starts",
    sizes={"queries": 100_000, "documents": 5_000_000, "dimension": 768, "k": 100},
    scaled=frozenset({"queries", "documents"}),
    prepare=prepare,
    sides={"ours": measured("ours", partial(exact, "cuda")), "matrix rate": matrix_rate},
    goals=(Goal("matrix rate", over="ours", under="matrix rate", figure="gflops", at_least=0.6),),
    gpu=True,
)
